import type { Clock, HeldJob, Log, Store } from '@flotilla/core';
import { type InventoryItem, type Verdict, isId } from '@flotilla/protocol';
import type { Link } from '../fleet/link.ts';
import type { FleetNode } from '../fleet/node.ts';
import type { Roster } from '../fleet/roster.ts';
import type { HeldJobs } from './held-jobs.ts';

/**
 * What nodes come back with, and what they do not come back with.
 *
 * An attempt in a node's inventory that this replica does not know, and that the store owns, is asked of the store: the
 * node hears `wait` at once and the verdict when the store has answered: until then the item is neither lost nor, where
 * the node has finished it, claimed for anybody else (`results`). What the store says a node holds, and neither the node
 * nor this replica knows of, is lost; but it is given away only when no former process of that node can still be working
 * on it, which is when every lease that one could have had is over.
 */
export interface ReturnsDeps {
  clock: Clock;
  log: Log;
  store: Pick<Store, 'keepJobs' | 'heldJobs' | 'heldNodes'>;
  replica: string;
  roster: Roster;
  held: Pick<HeldJobs, 'jobs' | 'keep' | 'lose'>;
  lease_ttl_ms: number;
  /** How long after this one's start a process whose place it took may have renewed leases. */
  predecessor_renews_ms: number;
  /** Whether that replica is there, as far as is known. */
  lives(replica: string): Promise<boolean>;
  /** Reads what other replicas have written of their nodes by now. @returns false where the store does not say */
  look(): Promise<boolean>;
  /** The brake (core/brake.ts) holds. */
  heldBack(): boolean;
}

export interface Returns {
  /** These items are the store's, and nobody here knows them. Their verdicts follow on the link. */
  ask(node: FleetNode, link: Link, items: readonly InventoryItem[]): void;
  /**
   * Resolves when the store has answered for every result that it is being asked about now; at the latest after one
   * failed try of each, so that no node can hold up the others.
   */
  results(): Promise<unknown>;
  /** A node came back with this job's result, within its lease, and hands it in now. */
  handsIn(job: string, attempt: number): void;
  /**
   * Nodes that may still come back with a result that is older than any deadline, and jobs that nodes have come back
   * with: until the store says whose they are, or for as long as a lease, once. What the sweep takes from a node ends by
   * the deadline of its new wait.
   */
  spared(): Promise<string[]>;
  /** How long until one of these jobs is spared no longer; Infinity: there is none. */
  spareEndsIn(): number;
  /** Looks for what is lost with nodes that are gone, or that came back without it. */
  sweep(): Promise<void>;
  /** The same for these nodes, whatever of the present connection they hold: no claim is under way. */
  reclaim(nodes: readonly FleetNode[]): Promise<void>;
}

/** After a try that failed. */
const RETRY_MS = 500;

export function createReturns(deps: ReturnsDeps): Returns {
  const { clock, log, store, replica, roster, held } = deps;
  const started_ms = clock.now_ms();
  /** Items that the store is being asked about, by node and attempt, with the link that asks. */
  const asking = new Map<string, Link>();
  const results = new Set<Promise<unknown>>();
  /** Jobs whose results nodes came back with, and until when no deadline ends them. */
  const handed_in = new Map<string, { attempt: number; until_ms: number }>();
  return {
    ask(node, link, items) {
      const fresh = items.filter((item) => asking.get(keyOf(node.id, item)) !== link);
      if (fresh.length > 0) void settle(node, link, fresh);
    },
    results: () => Promise.all(results),
    handsIn(job, attempt) {
      // Once: a link that breaks again and again does not hold up the deadline for ever.
      if (handed_in.get(job)?.attempt === attempt) return;
      handed_in.set(job, { attempt, until_ms: clock.now_ms() + deps.lease_ttl_ms });
    },
    spared,
    spareEndsIn() {
      const now_ms = clock.now_ms();
      const left = [...handed_in.values()].map(({ until_ms }) => until_ms - now_ms);
      return Math.min(...left.filter((ms) => ms > 0));
    },
    sweep,
    async reclaim(nodes) {
      for (const node of nodes) await reclaim(node.id, node, true);
    },
  };

  /** Until the store has answered, or another link of the node asks: what is asked about must not be taken for lost. */
  async function settle(node: FleetNode, link: Link, items: readonly InventoryItem[]): Promise<void> {
    for (const item of items) asking.set(keyOf(node.id, item), link);
    do {
      const answered = keep(node, link, items);
      if (items.some(({ state }) => state === 'finished')) {
        results.add(answered);
        void answered.finally(() => results.delete(answered));
      }
      if (await answered) break;
      await new Promise<void>((over) => void clock.after(RETRY_MS, over));
    } while (node.link === link);
    for (const item of items)
      if (asking.get(keyOf(node.id, item)) === link) asking.delete(keyOf(node.id, item));
  }

  /** @returns false when the store could not be asked */
  async function keep(node: FleetNode, link: Link, items: readonly InventoryItem[]): Promise<boolean> {
    try {
      const wanted = items.map(({ job, attempt, state }) => ({
        id: job,
        attempt,
        finished: state === 'finished',
        wants_request: state === 'receiving',
      }));
      const kept = new Map(
        (await store.keepJobs(node.id, link.epoch, replica, wanted)).map((job) => [job.id, job]),
      );
      // Of an older connection: the newer one asks too, with its own epoch.
      if (node.link !== link) return true;
      const verdicts: Verdict[] = [];
      for (const item of items) {
        const job = kept.get(item.job);
        if (job !== undefined && item.state !== 'released') {
          verdicts.push(held.keep(job, node, link, item));
          continue;
        }
        verdicts.push({ job: item.job, attempt: item.attempt, verdict: 'abandon' });
        if (job !== undefined) await held.lose(job, { ...job, started: job.state === 'running' });
      }
      link.send({ type: 'inventory.verdicts', verdicts });
      return true;
    } catch (error) {
      log.warn({ error, node: node.id }, 'What a node came back with could not be asked of the store yet.');
      return false;
    }
  }

  async function spared(): Promise<string[]> {
    const away = (await store.heldNodes()).filter((id) => {
      if (isId('provider', id)) return false;
      const node = roster.find(id);
      // The sweep leaves it alone while the brake holds: a deadline is what ends its jobs then.
      // What is linked elsewhere is that replica's to end.
      if (node !== undefined && node.replica !== null) return true;
      return node?.state !== 'online' && !(node?.state === 'offline' && deps.heldBack());
    });
    for (const job of handed_in.keys()) if (!held.jobs.has(job)) handed_in.delete(job);
    const now_ms = clock.now_ms();
    const coming = [...handed_in].flatMap(([job, { until_ms }]) => (now_ms < until_ms ? [job] : []));
    return [...away, ...coming, ...[...asking.keys()].map((key) => key.slice(key.lastIndexOf(' ') + 1))];
  }

  async function sweep(): Promise<void> {
    for (const id of await store.heldNodes()) await reclaim(id, roster.find(id), false);
  }

  async function reclaim(id: string, node: FleetNode | undefined, all: boolean): Promise<void> {
    const epoch = node?.epoch ?? Infinity;
    if (!mayBeTaken(id, node, all)) return;
    const jobs = await store.heldJobs(id);
    const there = await replicasThere(jobs);
    // A claim of this replica is in doubt; what another one has claimed is not.
    const isDoubted = (job: HeldJob) => all && job.replica === replica;
    const isLost = (job: HeldJob) => !isKnown(job) && (isDoubted(job) || isFormer(job, node, epoch, there));
    if (!jobs.some(isLost)) return;
    // Another replica may have given it these since what is known here was read: taken from it, they would run twice.
    if (!(await deps.look()))
      throw new Error('The store did not say which nodes are linked to other replicas.');
    const lost = mayBeTaken(id, node, all) ? jobs.filter(isLost) : [];
    if (lost.length === 0) return;
    log.warn({ node: id, jobs: lost.length }, 'Detached jobs were lost with their node, and wait again.');
    await Promise.all(lost.map((job) => held.lose(job, { ...job, started: job.state === 'running' })));
  }

  function mayBeTaken(id: string, node: FleetNode | undefined, all: boolean): boolean {
    // One that has become known meanwhile is judged by the next look; providers are never in the roster.
    if (node === undefined && roster.find(id) !== undefined) return false;
    // What is linked elsewhere is that replica's to judge.
    if (node !== undefined && node.replica !== null) return false;
    if (all) return true;
    if (node?.state === 'suspect' || node?.state === 'pending') return false;
    if (node?.state === 'offline' && deps.heldBack()) return false;
    const predecessor_until_ms = started_ms + deps.predecessor_renews_ms + deps.lease_ttl_ms;
    return clock.now_ms() >= Math.max(node?.former_until_ms ?? 0, predecessor_until_ms);
  }

  /** Those of providers are asked by the replica that has them. */
  async function replicasThere(jobs: readonly HeldJob[]): Promise<Set<string>> {
    const there = new Set<string>();
    for (const { node, replica: other } of jobs) {
      if (isId('provider', node) && !there.has(other) && (await deps.lives(other))) there.add(other);
    }
    return there;
  }

  function isKnown({ id, attempt, node }: HeldJob): boolean {
    return held.jobs.get(id)?.kernel.attempt === attempt || asking.has(keyOf(node, { job: id, attempt }));
  }

  /** A connected node's own epoch may be that of a claim under way. */
  function isFormer(
    job: HeldJob,
    node: FleetNode | undefined,
    epoch: number,
    there: ReadonlySet<string>,
  ): boolean {
    // A provider's attempt lives and ends with the process that asks it.
    if (isId('provider', job.node)) return !there.has(job.replica);
    // A later epoch is of a connection that this replica has not heard of yet.
    return node?.state === 'online' ? job.epoch < epoch : job.epoch <= epoch;
  }
}

function keyOf(node: string, { job, attempt }: { job: string; attempt: number }): string {
  return `${node} ${attempt} ${job}`;
}
