import {
  ATTACHED_MOVE_MS,
  BRAKE_MAX_MS,
  type Clock,
  type LivenessEvent,
  type Log,
  STREAM_WAIT_MS,
  type Timings,
  releaseAll,
  stepLiveness,
} from '@flotilla/core';
import {
  type ControlMessageOf,
  FlotillaError,
  NODE_FEATURES,
  type NodeMessage,
  type NodeMessageOf,
  readInventory,
} from '@flotilla/protocol';
import { fenceOf } from '../dispatch/attempt.ts';
import type { Dispatcher } from '../dispatch/dispatcher.ts';
import { takeAttemptMessage, takeFrame } from '../dispatch/node-messages.ts';
import type { Discoveries } from '../discovery/discoveries.ts';
import { compareInventory, loseAll, reconcile } from '../dispatch/reconcile.ts';
import type { LatestWriter } from './latest-writer.ts';
import { CLOSE, type Link } from './link.ts';
import { ABLE, type FleetNode, dropAttempt, forgetFailures } from './node.ts';
import { type Registration, readNodeDescriptor } from './registration.ts';
import type { Roster } from './roster.ts';
import type { Watch } from './watch.ts';
import type { DescriptorChange, MovedNode, NodeStateChange } from '@flotilla/core';

/**
 * The life of a node's connection: taking it up, beats, losing it, and what each does to the node's work. The states
 * are core/liveness.ts's; they are moved here and nowhere else.
 */
export interface ConnectionDeps {
  clock: Clock;
  log: Log;
  replica: string;
  /** There may be others: they are told how the backends are. */
  shared: boolean;
  /** Others may take this replica for dead: what the store owns is not to be worked on for longer than they wait. */
  renews(): 'all' | 'attached';
  timings: Timings;
  roster: Roster;
  dispatcher: Dispatcher;
  discoveries: Discoveries;
  watch: Watch;
  states: LatestWriter<NodeStateChange>;
  descriptors: LatestWriter<DescriptorChange>;
  /** A node was heard of. */
  seen(): void;
  beat(): void;
  /** A node's own count of its work differed from ours. */
  differed(): void;
  /** A node has changed its state, which `node.state` now says. */
  moved(node: FleetNode): void;
  /** The node is linked to another replica now: it is not missed here. */
  left(node: FleetNode): void;
  /** The brake (core/brake.ts) holds: what the store owns stays with the node that fell silent. */
  holdingBack(): boolean;
}

export interface Connections {
  take(node: FleetNode, registration: Registration): void;
  /** Feeds an event that did not come over the link. */
  step(node: FleetNode, event: LivenessEvent): void;
  desiredOf(node: FleetNode): ControlMessageOf<'node.heartbeat.ack'>['desired'];
  /** Another replica has written this of the node. */
  elsewhere(node: FleetNode, moved: MovedNode): void;
  /** A connection that is no more has taken this epoch of the node. */
  overtaken(node: FleetNode, epoch: number): void;
  /** A replica is no more: its nodes are nobody's. */
  orphan(replica: string): void;
  /** Beats that were answered for attached work alone count for all: others know again that this replica lives. */
  renewed(): void;
}

/** Of so many processes of a node is known that another has taken their place. */
const SUPERSEDED_MOST = 16;
/** Those of today are a handful. */
const FEATURES_MOST = 64;
/** After this many differing beats in a row the node is asked for its inventory. */
const DIFFERING_BEATS = 2;
/**
 * An inventory that was not asked for is read this seldom; a node that waits for a verdict sends one every 500 ms. Some
 * thousand items take 20 ms to read: a flood of them would cost other nodes their leases.
 */
const UNASKED_EVERY_MS = 100;

export function createConnections(deps: ConnectionDeps): Connections {
  const { clock, log, timings, roster, dispatcher, discoveries, watch } = deps;
  /** What each node held when it was asked for its inventory. */
  const asked = new WeakMap<FleetNode, Set<string>>();
  const unasked_ms = new WeakMap<Link, number>();
  /** The last beats that were answered for attached work alone. */
  const half_renewed = new Map<FleetNode, { link: Link; seq: number }>();
  return { take, step, desiredOf, elsewhere, overtaken, orphan, renewed };

  function take(node: FleetNode, { epoch, message, received_ms, open }: Registration): void {
    const same_process = node.boot_id === message.boot_id;
    node.link?.close(CLOSE.superseded, {
      code: 'node_in_use',
      message: same_process
        ? 'This process has opened a newer link.'
        : 'A newer daemon has this credential now.',
    });
    node.link = null;
    // Another replica has had it, or has it, also where nothing was heard of that.
    if (node.replica !== null || epoch !== node.epoch + 1) renewedElsewhere(node);
    node.replica = null;
    // Of a process that only others have known, its inventory says what it has.
    if (!same_process && node.boot_id !== null) {
      node.superseded = [...node.superseded, node.boot_id].slice(-SUPERSEDED_MOST);
      loseAll(dispatcher, node, formerLease(node));
    }
    cancelAway(node);
    const link = open({
      message: (incoming) => onMessage(node, link, incoming),
      frame: (frame, attempt) => takeFrame(dispatcher, attempt, frame),
      broke: (error) => log.error({ node: node.id, error }, 'What a node sent met a fault of ours.'),
      closed: (reason) => onClosed(node, link, reason),
    });
    node.epoch = epoch;
    node.boot_id = message.boot_id;
    node.unfenced = !link.fences;
    node.features = message.features.slice(0, FEATURES_MOST);
    node.stopping = false;
    node.journal = message.journal ?? ABLE;
    node.connected_at = clock.wall_ms();
    node.liveness = stepLiveness(node.liveness, { type: 'registered' }, received_ms, timings);
    roster.sync(node);
    const verdicts = reconcile(dispatcher, node, link, message.inventory);
    node.link = link;
    link.send({
      type: 'node.registered',
      ...(message.id === undefined ? {} : { id: message.id }),
      node_id: node.id,
      name: node.record.name,
      epoch,
      server_time: new Date(clock.wall_ms()).toISOString(),
      heartbeat_ms: timings.heartbeat_ms,
      lease_ttl_ms: timings.lease_ttl_ms,
      protocol: 1,
      verdicts,
      desired: desiredOf(node),
      // Leases are answered before descriptors are read; what is wrong with a new one is told with the next beat.
      warnings: node.warnings,
    });
    describe(node, message.descriptor, message.descriptor_hash);
    roster.setHealth(node, message.backends);
    heard(node);
    step(node, { type: 'reconciled' });
    discoveries.joined(node);
    log.info({ node: node.id, name: node.record.name, epoch, kept: verdicts.length }, 'node connected');
  }

  function onMessage(node: FleetNode, link: Link, message: NodeMessage): void {
    if (node.link !== link) return;
    switch (message.type) {
      case 'node.heartbeat':
        return onBeat(node, link, message);
      case 'descriptor.update': {
        describe(node, message.descriptor, message.descriptor_hash);
        return capacityMoved(node);
      }
      case 'inventory.sync':
        return onInventory(node, link, message.inventory);
      case 'discovery.progress':
      case 'discovery.result':
        return discoveries.take(node, link, message);
      case 'node.deregister':
        node.link = null;
        node.stopping = false;
        link.close(1000);
        return step(node, { type: 'deregistered', reason: `it said goodbye: ${message.reason}` });
      case 'node.register':
        throw new FlotillaError('conflict', 'This link is registered already.');
      case 'error':
        return log.warn(
          { node: node.id, code: message.code, said: message.message },
          'the node reported an error',
        );
      case 'stream.credit':
      case 'link.ack':
        return;
      default:
        return takeAttemptMessage(dispatcher, node, message);
    }
  }

  function onBeat(node: FleetNode, link: Link, beat: NodeMessageOf<'node.heartbeat'>): void {
    deps.beat();
    const knows = node.features.includes(NODE_FEATURES.detachedLease);
    // An older daemon would take it for a renewal of everything: better it dials another replica, where there are any.
    const renews = knows || deps.shared ? deps.renews() : 'all';
    if (renews === 'attached' && !knows) {
      link.close(CLOSE.tryLater, { code: 'unavailable', message: 'This replica cannot reach its store.' });
      return;
    }
    node.host = beat.host;
    if (beat.rtt_ms !== undefined) link.roundTrip(beat.rtt_ms);
    acknowledge(node, link, beat.seq, wanted(node, beat), renews);
    if (renews === 'attached') half_renewed.set(node, { link, seq: beat.seq });
    else half_renewed.delete(node);
    const was_stopping = node.stopping;
    node.stopping = beat.draining;
    node.journal = beat.journal ?? ABLE;
    const health_moved = roster.setHealth(node, beat.backends);
    node.liveness = stepLiveness(
      node.liveness,
      { type: 'beat', progress_seq: beat.progress_seq },
      clock.now_ms(),
      timings,
    );
    heard(node);
    if (health_moved && deps.shared && node.liveness.state === node.state) writeState(node);
    if (node.liveness.state !== node.state) applyState(node);
    else if (roster.sync(node) || health_moved || was_stopping !== node.stopping) capacityMoved(node);
  }

  function acknowledge(
    node: FleetNode,
    link: Link,
    seq: number,
    want: string[],
    renews: 'all' | 'attached',
  ): void {
    link.send({
      type: 'node.heartbeat.ack',
      seq,
      server_time: new Date(clock.wall_ms()).toISOString(),
      epoch: link.epoch,
      ...(renews === 'attached' && { renews }),
      desired: desiredOf(node),
      want,
      warnings: node.warnings,
      discoveries: discoveries.openOf(node),
    });
  }

  /** Not with their next beats: a node may stop what it has before it sends one. */
  function renewed(): void {
    for (const [node, { link, seq }] of half_renewed) {
      if (node.link === link) acknowledge(node, link, seq, [], 'all');
    }
    half_renewed.clear();
  }

  function onInventory(node: FleetNode, link: Link, items: readonly unknown[]): void {
    const held = asked.get(node);
    asked.delete(node);
    if (held === undefined) {
      const since_ms = clock.now_ms() - (unasked_ms.get(link) ?? -Infinity);
      if (since_ms < UNASKED_EVERY_MS) throw new FlotillaError('rate_limited', 'No inventory was asked for.');
      unasked_ms.set(link, clock.now_ms());
    }
    const inventory = readInventory(items);
    const { verdicts, differences } = compareInventory(dispatcher, node, link, inventory, held ?? new Set());
    if (differences.lost.length > 0 || differences.unknown.length > 0) {
      log.warn(
        { node: node.id, name: node.record.name, ...differences },
        'A node counted its work otherwise; its own count stands.',
      );
      deps.differed();
    }
    link.send({ type: 'inventory.verdicts', verdicts });
  }

  /** What the beat lacks: a descriptor we have not seen, an inventory where two beats in a row counted otherwise. */
  function wanted(node: FleetNode, beat: NodeMessageOf<'node.heartbeat'>): string[] {
    const want: string[] = [];
    if (beat.descriptor_hash !== node.descriptor_hash) want.push('descriptor');
    for (const pool of node.ledger.pools.values()) {
      pool.reported = beat.pools.find((own) => own.id === pool.id)?.in_flight ?? null;
    }
    const differs = beat.leases_digest !== '' && beat.leases_digest !== node.digest.value;
    node.differing_beats = differs ? node.differing_beats + 1 : 0;
    if (node.differing_beats >= DIFFERING_BEATS) {
      node.differing_beats = 0;
      asked.set(node, new Set(node.attempts.keys()));
      want.push('inventory');
    }
    return want;
  }

  function describe(node: FleetNode, input: unknown, hash: string): void {
    if (node.descriptor !== null && hash !== '' && hash === node.descriptor_hash && node.spots.length > 0)
      return;
    const descriptor = readNodeDescriptor(node, input);
    roster.describe(node, descriptor, hash);
    deps.descriptors.put({ id: node.id, epoch: node.epoch, descriptor, descriptor_hash: hash });
  }

  function heard(node: FleetNode): void {
    node.last_seen_at = clock.wall_ms();
    forgetFailures(node, clock.now_ms());
    deps.seen();
    watch.touch(node);
  }

  function onClosed(node: FleetNode, link: Link, reason: string): void {
    if (node.link !== link) return;
    node.link = null;
    half_renewed.delete(node);
    step(node, { type: 'closed', reason });
  }

  function step(node: FleetNode, event: LivenessEvent): void {
    node.liveness = stepLiveness(node.liveness, event, clock.now_ms(), timings);
    if (node.liveness.state !== node.state) applyState(node);
    else roster.sync(node);
  }

  /** A transition: written at once, and felt at once by the work. */
  function applyState(node: FleetNode): void {
    const { state, reason } = node.liveness;
    const before = node.state;
    roster.sync(node);
    writeState(node);
    log.info({ node: node.id, name: node.record.name, from: before, to: state, reason }, `node ${state}`);
    if (state === 'online') cancelAway(node);
    else if (state === 'suspect') armAway(node);
    else if (state === 'offline' || state === 'revoked') gone(node, state);
    deps.moved(node);
    capacityMoved(node);
  }

  function writeState(node: FleetNode): void {
    const { state, reason } = node.liveness;
    deps.states.put({
      id: node.id,
      epoch: node.epoch,
      state,
      close_reason: state === 'online' ? null : reason,
      at: clock.wall_ms(),
      last_seen_at: node.last_seen_at,
      ...(deps.shared && { health: [...node.health.values()] }),
    });
  }

  /**
   * Its own replica decides about it and writes that; here it is only known of, so nothing is written. What it works on for
   * clients of this replica waits for that one's word, as after a cut of the link.
   */
  function elsewhere(node: FleetNode, moved: MovedNode): void {
    if (moved.replica === deps.replica) return overtaken(node, moved.epoch);
    if (moved.replica === null || moved.epoch < node.epoch) return;
    const { link } = node;
    if (link !== null && moved.epoch === node.epoch) return;
    if (node.replica === null) {
      node.link = null;
      // It may be another process by the time that it comes back.
      node.boot_id = null;
      watch.forget(node);
      letStoresWorkGo(node);
      dispatcher.others.letGo(node);
      releaseAll(node.ledger);
      for (const attempt of [...node.attempts.values()]) {
        if (attempt.phase === 'over') dropAttempt(node, attempt);
      }
      deps.left(node);
      armAway(node);
      link?.close(CLOSE.tryLater, {
        code: 'node_in_use',
        message: 'This node is linked to another replica now.',
      });
    }
    node.replica = moved.replica;
    node.epoch = moved.epoch;
    const reason = moved.close_reason ?? `linked to ${moved.replica}`;
    const event: LivenessEvent = { type: 'elsewhere', state: moved.state, reason };
    node.liveness = stepLiveness(node.liveness, event, clock.now_ms(), timings);
    if (moved.descriptor !== null) roster.describe(node, moved.descriptor, moved.descriptor_hash ?? '');
    roster.setHealth(node, moved.health ?? []);
    capacityMoved(node);
  }

  /**
   * The node has asked for a link and was gone, or its replica was, before it had one: the link that it has here is not the
   * one that the store knows. What is said on it would be written nowhere, and others would give its work away.
   */
  function overtaken(node: FleetNode, epoch: number): void {
    if (epoch <= node.epoch) return;
    const message = 'A later connection of this node has come to nothing: it has to register anew.';
    node.link?.close(CLOSE.tryLater, { code: 'unavailable', message });
  }

  function letStoresWorkGo(node: FleetNode): void {
    for (const attempt of [...node.attempts.values()]) {
      if (attempt.job.kernel.policy.attached) continue;
      dropAttempt(node, attempt);
      dispatcher.stores.orphan(attempt, timings.lease_ttl_ms);
    }
  }

  function orphan(replica: string): void {
    for (const node of roster.all()) {
      if (node.replica !== replica) continue;
      node.replica = null;
      renewedElsewhere(node);
      if (node.state !== 'online' && node.state !== 'suspect') continue;
      step(node, { type: 'orphaned', reason: `its replica ${replica} is no more` });
      watch.touch(node);
    }
  }

  function gone(node: FleetNode, state: 'offline' | 'revoked'): void {
    cancelAway(node);
    watch.forget(node);
    const { link } = node;
    discoveries.lost(node);
    // What was revoked works on until it hears of it, or its lease is over; what is offline has stopped by now. While the
    // brake holds, its work is left to the look at the nodes that follows, or to the node, if that comes back first.
    const held_ms = deps.holdingBack() ? BRAKE_MAX_MS : 0;
    loseAll(dispatcher, node, state === 'revoked' ? formerLease(node) : held_ms);
    node.link = null;
    if (state === 'revoked')
      link?.close(CLOSE.revoked, { code: 'revoked', message: "The node's credential was withdrawn." });
    else link?.close(CLOSE.silent, { code: 'node_lost', message: 'No beat arrived before the lease ended.' });
  }

  /** Which process of it that was is not known here: whichever comes now, another one may hold a lease. */
  function renewedElsewhere(node: FleetNode): void {
    node.former_until_ms = Math.max(node.former_until_ms, clock.now_ms() + timings.lease_ttl_ms);
  }

  /** How long a process of the node that is not the linked one may still hold a lease. */
  function formerLease(node: FleetNode): number {
    const { last_beat_ms } = node.liveness;
    if (last_beat_ms === null || node.boot_id === null || node.state === 'offline') return 0;
    node.former_until_ms = Math.max(node.former_until_ms, last_beat_ms + timings.lease_ttl_ms);
    return node.former_until_ms - clock.now_ms();
  }

  /**
   * The link is away: what has sent nothing moves after 2 s, streams end after 5 s, unless the node returns. What has
   * another link by then is on its way by another replica, and waits for itself.
   */
  function armAway(node: FleetNode): void {
    cancelAway(node);
    const links = new Map([...node.attempts.values()].map((attempt) => [attempt, attempt.link]));
    const lose = (which: (handed: boolean) => boolean) => () => {
      for (const attempt of [...node.attempts.values()]) {
        const { policy, handed } = attempt.job.kernel;
        if (attempt.phase === 'over' || !policy.attached || attempt.link !== links.get(attempt)) continue;
        if (attempt.stream !== 0 || !which(handed)) continue;
        dispatcher.feed(attempt, { type: 'node_lost', fence: fenceOf(attempt), retry_delay_ms: 0 });
        // Its slot is another replica's to free, which does not say so here.
        if (node.replica !== null) dispatcher.settleSlot(attempt);
      }
    };
    node.away = [
      clock.after(
        ATTACHED_MOVE_MS,
        lose((handed) => !handed),
      ),
      clock.after(
        STREAM_WAIT_MS,
        lose(() => true),
      ),
    ];
  }

  function cancelAway(node: FleetNode): void {
    for (const timer of node.away) timer.cancel();
    node.away = [];
  }

  function capacityMoved(node: FleetNode): void {
    roster.sync(node);
    dispatcher.pump(node);
    dispatcher.recheck();
  }

  function desiredOf(node: FleetNode): ControlMessageOf<'node.heartbeat.ack'>['desired'] {
    const { cordoned, drain_deadline_at } = node.record;
    if (drain_deadline_at === null) return { cordoned };
    return { cordoned, drain_ms: Math.max(0, drain_deadline_at - clock.wall_ms()) };
  }
}
