import { holdAnyway, refence, releaseAll, slotKey } from '@flotilla/core';
import { type InventoryItem, STORE_OWNER, type Verdict, isId } from '@flotilla/protocol';
import { type FleetNode, dropAttempt } from '../fleet/node.ts';
import type { Link } from '../fleet/link.ts';
import { type Attempt, fenceOf } from './attempt.ts';
import type { Dispatcher } from './dispatcher.ts';
import { acceptAttempt, startAttempt } from './node-messages.ts';

/**
 * What a node holds against what we think it holds. Each item gets its own verdict, so one bad item costs nobody else.
 * The ledger restarts from the inventory, abandoned items included: their slots are taken until they are released.
 */
export function reconcile(
  dispatcher: Dispatcher,
  node: FleetNode,
  link: Link,
  inventory: readonly InventoryItem[],
): Verdict[] {
  const listed = new Set(inventory.map((item) => slotKey(item.job, item.attempt)));
  for (const attempt of [...node.attempts.values()]) {
    if (!listed.has(slotKey(attempt.job.id, attempt.number))) letGo(dispatcher, attempt);
  }
  releaseAll(node.ledger);
  askOwners(dispatcher, node, link, inventory);
  return inventory.map((item) => {
    const attempt = node.attempts.get(slotKey(item.job, item.attempt));
    if (item.state === 'receiving' || item.state === 'running')
      holdAnyway(node.ledger, poolOf(node, item, attempt), item.job, item.attempt);
    return verdictOn(dispatcher, node, link, item, attempt);
  });
}

/**
 * An inventory on a standing link, asked for because the counts differed. TCP keeps order, so what was offered before
 * the question and is not in the answer has ended without our hearing of it.
 */
export function compareInventory(
  dispatcher: Dispatcher,
  node: FleetNode,
  link: Link,
  inventory: readonly InventoryItem[],
  asked_at_attempts: ReadonlySet<string>,
): { verdicts: Verdict[]; differences: { lost: string[]; unknown: string[] } } {
  const listed = new Set(inventory.map((item) => slotKey(item.job, item.attempt)));
  const lost: string[] = [];
  for (const key of asked_at_attempts) {
    const attempt = node.attempts.get(key);
    if (attempt === undefined || listed.has(key)) continue;
    lost.push(key);
    letGo(dispatcher, attempt);
  }
  for (const key of [...node.ledger.holders.keys()]) {
    if (node.attempts.has(key) || listed.has(key)) continue;
    lost.push(key);
    const [job, attempt] = splitKey(key);
    dispatcher.settleUnknown(node, job, attempt);
  }
  askOwners(dispatcher, node, link, inventory);
  const verdicts = inventory.flatMap((item) => {
    const attempt = node.attempts.get(slotKey(item.job, item.attempt));
    if (attempt !== undefined && (attempt.phase !== 'over' || attempt.unanswered)) return [];
    return [verdictOn(dispatcher, node, link, item, attempt)];
  });
  // What has ended there may only wait for our word that its end was heard.
  const working = inventory.filter(({ state }) => state === 'receiving' || state === 'running');
  const unknown = working
    .map((item) => slotKey(item.job, item.attempt))
    .filter((key) => !node.attempts.has(key));
  return { verdicts, differences: { lost, unknown } };
}

/** What nobody here knows, and the store or another replica owns: its verdicts follow. */
function askOwners(
  dispatcher: Dispatcher,
  node: FleetNode,
  link: Link,
  inventory: readonly InventoryItem[],
): void {
  const items = inventory.filter((item) => isForStore(item, attemptOf(node, item)));
  if (items.length > 0) dispatcher.stores.ask(node, link, items);
  const theirs = inventory.filter((item) => isForPeer(dispatcher, item, attemptOf(node, item)));
  if (theirs.length > 0) dispatcher.others.ask(node, link, theirs);
}

function isForStore(item: InventoryItem, attempt: Attempt | undefined): boolean {
  return attempt === undefined && item.owner === STORE_OWNER;
}

/** Its client is at another replica. */
function isForPeer(dispatcher: Dispatcher, item: InventoryItem, attempt: Attempt | undefined): boolean {
  const { others, deps } = dispatcher;
  return (
    others.present &&
    attempt === undefined &&
    item.owner !== undefined &&
    item.owner !== deps.replica &&
    isId('replica', item.owner)
  );
}

function attemptOf(node: FleetNode, item: InventoryItem): Attempt | undefined {
  return node.attempts.get(slotKey(item.job, item.attempt));
}

function verdictOn(
  dispatcher: Dispatcher,
  node: FleetNode,
  link: Link,
  item: InventoryItem,
  attempt: Attempt | undefined,
): Verdict {
  const fence = { job: item.job, attempt: item.attempt };
  // Its result is here, and answered as soon as it is committed; or the store has still to say whose it is.
  const is_asked = isForStore(item, attempt) || isForPeer(dispatcher, item, attempt);
  if (attempt?.unanswered === true || is_asked) return { ...fence, verdict: 'wait' };
  if (attempt === undefined || attempt.phase === 'over' || attempt.job.current !== attempt) {
    return { ...fence, verdict: 'abandon' };
  }
  // It may have been on the way to another replica, which has the node no longer.
  if (attempt.link !== link) attempt.link?.closeStream(attempt);
  attempt.link = link;
  const stream = link.resume(attempt, item);
  if (stream === undefined) {
    dispatcher.grants.takeBack(attempt, 'its stream cannot go on');
    return { ...fence, verdict: 'abandon' };
  }
  attempt.answer_timer?.cancel();
  attempt.job.kernel = refence(attempt.job.kernel, attempt.number, node.id, link.epoch);
  attempt.story.epoch = link.epoch;
  // What it said of taking it up may have been lost with the old link.
  if (item.state === 'receiving') acceptAttempt(dispatcher, attempt);
  if (item.state === 'running' || item.state === 'finished') startAttempt(dispatcher, attempt);
  attempt.ended = null;
  if (item.state === 'finished' && !attempt.job.kernel.policy.attached) dispatcher.stores.handsIn(attempt);
  return { ...fence, verdict: 'keep', stream, acked_offset: attempt.credited, head_received: attempt.head };
}

/** The node does not have it: nothing is left to wait for. */
function letGo(dispatcher: Dispatcher, attempt: Attempt): void {
  dispatcher.feed(attempt, { type: 'node_lost', fence: fenceOf(attempt), retry_delay_ms: 0 });
  dispatcher.settleSlot(attempt);
}

/**
 * Ends every attempt of a node whose lease is over, or whose process is another now: its slots are nobody's. Detached
 * work is given away only when the former process has stopped it by its own clock.
 * @param lease_left_ms of the former process, or for how long what the store owns is not to be given away
 */
export function loseAll(dispatcher: Dispatcher, node: FleetNode, lease_left_ms: number): void {
  const attempts = [...node.attempts.values()];
  for (const attempt of attempts) dropAttempt(node, attempt);
  releaseAll(node.ledger);
  for (const attempt of attempts) {
    if (attempt.job.kernel.policy.attached || lease_left_ms <= 0) {
      dispatcher.feed(attempt, { type: 'node_lost', fence: fenceOf(attempt), retry_delay_ms: 0 });
    } else dispatcher.stores.orphan(attempt, lease_left_ms);
  }
}

function poolOf(node: FleetNode, item: InventoryItem, attempt: Attempt | undefined): string {
  if (attempt !== undefined) return attempt.spot.slots.id;
  const backends = node.descriptor?.backends ?? [];
  return (backends.find((backend) => backend.id === item.backend) ?? backends[0])?.pool ?? 'unknown';
}

function splitKey(key: string): [string, number] {
  const colon = key.lastIndexOf(':');
  return [key.slice(0, colon), Number(key.slice(colon + 1))];
}
