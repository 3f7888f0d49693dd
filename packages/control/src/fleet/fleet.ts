import {
  type Brake,
  type Clock,
  type DescriptorChange,
  type KnownDescriptor,
  type LinkWrites,
  type LoadedNodes,
  type Log,
  type NodePatch,
  type NodeRecord,
  type NodeStateChange,
  RELEASED,
  type Random,
  type Store,
  type Timer,
  type Timings,
  BRAKE_MAX_MS,
  stepBrake,
} from '@flotilla/core';
import {
  type Descriptor,
  FlotillaError,
  MESSAGE_MAX_BYTES,
  type NodeMessageOf,
  type NodeView,
  makeId,
} from '@flotilla/protocol';
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import { type WebSocket, WebSocketServer } from 'ws';
import { hashCredential, makeCredential } from '../accounts/credential.ts';
import type { Hints } from '../bus/hints.ts';
import { ANSWER_WITHIN_MS, type Questions } from '../bus/questions.ts';
import type { Dispatcher } from '../dispatch/dispatcher.ts';
import type { Discoveries } from '../discovery/discoveries.ts';
import { createConnections } from './connection.ts';
import { createEpochs } from './epochs.ts';
import { type HttpNodes, type NodePeer, createHttpNodes } from './http-nodes.ts';
import { latestWriter } from './latest-writer.ts';
import { CLOSE, type LinkSocket, writesOn } from './link.ts';
import { createLinkedViews } from './linked-views.ts';
import { type Mirror, startMirror } from './mirror.ts';
import type { FleetNode } from './node.ts';
import { type Registration, incumbentAnswers, takeRegistration } from './registration.ts';
import type { Roster } from './roster.ts';
import { nodeView } from './view.ts';
import { createWatch } from './watch.ts';

/**
 * The fleet as the rest of the control plane sees it: read the roster, carry out the operator's wishes, take the
 * upgrade of a node link. Every promise settles when the store has committed.
 */
export interface Fleet {
  /** All nodes, by name, as they are known here. */
  list(): NodeView[];
  find(id: string): NodeView | undefined;
  /** With what only the replicas know that have the links. */
  complete(views: NodeView[]): Promise<NodeView[]>;
  /** Reads the nodes anew: one was enrolled, or another replica changed something. */
  refresh(): Promise<void>;
  update(id: string, patch: NodePatch): Promise<NodeView | undefined>;
  cordon(id: string, cordoned: boolean): Promise<NodeView | undefined>;
  drain(id: string, deadline_ms: number): Promise<NodeView | undefined>;
  rotate(id: string, overlap_ms: number): Promise<RotatedCredential | undefined>;
  revoke(id: string): Promise<NodeView | undefined>;
  /** @throws FlotillaError `conflict` while the node is connected */
  forget(id: string): Promise<boolean>;
  /**
   * `GET /node/v1/link`: authenticates by the node's credential; it is refused in HTTP, or becomes a link.
   * @param linked called once the node is registered on it
   */
  upgrade(
    request: IncomingMessage,
    socket: Duplex,
    head: Buffer,
    refuse: (error: FlotillaError) => void,
    linked: () => void,
  ): void;
  /** Whose credential this is. @throws FlotillaError `unauthorized`, `revoked`, `unavailable` */
  peer(credential: string): NodePeer;
  /** That node has opened a socket; it is refused there, or becomes a link. @returns whether it became one */
  join(peer: NodePeer, ws: LinkSocket, writes: LinkWrites): Promise<boolean>;
  /** Another replica is no more. */
  died(replica: string): void;
  /** This replica's row moves again after it stood still for H. */
  renewed(): void;
  /** What other replicas write of their nodes, from here on. */
  follow(): Promise<Mirror | null>;
  /** Nodes without a WebSocket. */
  readonly http: HttpNodes;
  close(): Promise<void>;
}

interface RotatedCredential {
  id: string;
  credential: string;
  old_expires_at: number;
}

export interface FleetDeps {
  clock: Clock;
  random: Random;
  log: Log;
  store: Store;
  replica: string;
  /** Null: there are no others. */
  shared: {
    lives(replica: string): Promise<boolean>;
    hints: Pick<Hints, 'tell'>;
    questions: Pick<Questions, 'ask' | 'on'>;
  } | null;
  /** How old the last bump of this replica's row is: another may take its place by it (replica.ts). */
  bumpAge_ms(): number;
  timings: Timings;
  roster: Roster;
  /** What nodes offer that are not in the roster yet. */
  known: KnownDescriptor;
  dispatcher: Dispatcher;
  discoveries: Discoveries;
  /** A node was changed here. @returns when what this replica believes of the nodes has been read again */
  changed(): Promise<void>;
  beat(): void;
  differed(): void;
}

/**
 * A node's transitions carry when it was last heard of. In between only this replica knows, and tells who asks; what the
 * store says is no older than this where the replica dies without a goodbye.
 */
const SEEN_FLUSH_MS = 5 * 60_000;
const BRAKE_ALARM = 'More than half of the nodes fell silent together: requeueing is held back.';

export function createFleet(deps: FleetDeps): Fleet {
  const { clock, random, log, store, replica, timings, roster, dispatcher } = deps;
  const server = new WebSocketServer({
    noServer: true,
    perMessageDeflate: false,
    maxPayload: MESSAGE_MAX_BYTES,
    clientTracking: false,
  });
  const states = latestWriter<NodeStateChange>(
    (rows) => store.saveNodeStates(rows).then(tellOthers),
    clock,
    log,
    'node states',
  );
  const descriptors = latestWriter<DescriptorChange>(
    (rows) => store.saveDescriptors(rows).then(tellOthers),
    clock,
    log,
    'descriptors',
  );
  const epochs = createEpochs(store, replica);
  /** Who was heard of after this, by `now_ms`, is flushed with the next. */
  let seen_flushed_ms = -Infinity;
  let seen_timer: Timer | null = null;
  let brake: Brake = RELEASED;
  let closing = false;
  let refreshing: Promise<void> = Promise.resolve();
  let next_refresh: Promise<void> | null = null;
  /** Of nodes, written from here. */
  let changes = 0;
  let brake_timer: Timer | null = null;
  /** Nodes that were online when trouble began, and those of them that have fallen silent, for as long as the brake holds. */
  const known = new Set<FleetNode>();
  const suspect = new Set<FleetNode>();
  /** Nodes that had a link before this control plane started, and have none with it yet. */
  const awaited = new Set<FleetNode>();
  const watch = createWatch(clock, timings, (node) => connections.step(node, { type: 'tick' }));
  const connections = createConnections({
    clock,
    log,
    replica,
    shared: deps.shared !== null,
    renews: () => (deps.bumpAge_ms() > timings.heartbeat_ms ? 'attached' : 'all'),
    timings,
    roster,
    dispatcher,
    discoveries: deps.discoveries,
    watch,
    states,
    descriptors,
    seen: () => {
      seen_timer ??= clock.after(SEEN_FLUSH_MS, () => void flushSeen());
    },
    beat: () => deps.beat(),
    differed: () => deps.differed(),
    moved: (node) => {
      if (closing) return;
      if (node.state === 'offline' && awaited.has(node)) countMissing();
      awaited.delete(node);
      // A lease that ends while the brake holds is what it holds for: that node is as silent as before.
      const fell_silent = node.state === 'offline' && suspect.has(node) && brake.held_since_ms !== null;
      if (node.state === 'suspect' || fell_silent) suspect.add(node);
      else suspect.delete(node);
      if (node.state === 'suspect' || node.state === 'online' || fell_silent) known.add(node);
      else known.delete(node);
      moveBrake();
    },
    left: (node) => {
      awaited.delete(node);
      known.delete(node);
      suspect.delete(node);
      moveBrake();
    },
    holdingBack: () => brake.held_since_ms !== null,
  });

  deps.shared?.questions.on('in_use', ({ node: id, boot_id }) => {
    const node = roster.find(id);
    return node !== undefined && incumbentAnswers(node, boot_id, clock, ANSWER_WITHIN_MS);
  });

  const view = (node: FleetNode) => {
    const shown = nodeView(node, clock, timings, replica);
    if (brake.held_since_ms !== null && suspect.has(node)) shown.why.alarms.push(BRAKE_ALARM);
    return shown;
  };

  const complete =
    deps.shared === null
      ? async (views: NodeView[]) => views
      : createLinkedViews({ roster, questions: deps.shared.questions, view });

  return {
    list: () => [...roster.all()].map(view).sort((a, b) => a.name.localeCompare(b.name)),
    find(id) {
      const node = roster.find(id);
      return node === undefined ? undefined : view(node);
    },
    complete,
    refresh,
    update: (id, patch) => change(id, () => store.updateNode(id, patch)),
    cordon: (id, cordoned) =>
      change(id, () => store.updateNode(id, cordoned ? { cordoned } : { cordoned, drain_deadline_at: null })),
    drain: (id, deadline_ms) =>
      change(id, () =>
        store.updateNode(id, { cordoned: true, drain_deadline_at: clock.wall_ms() + deadline_ms }),
      ),
    rotate,
    revoke: (id) => change(id, () => store.revokeNode(id, clock.wall_ms())),
    forget,
    died: (other) => connections.orphan(other),
    renewed: () => connections.renewed(),
    follow,
    upgrade,
    peer,
    join,
    http: createHttpNodes({
      clock,
      log,
      epochs,
      replica,
      inUseElsewhere,
      desired: (node) => connections.desiredOf(node),
      take: accept,
      used({ node, credential }) {
        if (node.credential === credential) return;
        node.credential = credential;
        armCredential(node);
      },
    }),
    close,
  };

  /** One at a time, and one more for all who asked meanwhile: an older answer never overwrites a newer one. */
  function refresh(): Promise<void> {
    next_refresh ??= refreshing
      .catch(() => undefined)
      .then(() => {
        next_refresh = null;
        refreshing = reload();
        return refreshing;
      });
    return next_refresh;
  }

  async function reload(): Promise<void> {
    let read: LoadedNodes;
    let seen: number;
    do {
      seen = changes;
      read = await store.loadNodes(knownDescriptor);
      // Something was changed from here meanwhile: these rows may be older than what its caller was told.
    } while (seen !== changes);
    const { added, changed, removed } = roster.load(read.nodes, read.unreadable);
    for (const node of added) {
      if (node.state !== 'suspect') continue;
      awaited.add(node);
      watch.touch(node);
    }
    for (const node of removed) {
      awaited.delete(node);
      known.delete(node);
      suspect.delete(node);
    }
    if (removed.length > 0) moveBrake();
    for (const node of removed)
      node.link?.close(CLOSE.revoked, { code: 'revoked', message: 'This node was deleted.' });
    for (const node of changed) apply(node);
    for (const node of roster.all()) armCredential(node);
    if (changed.length > 0 || removed.length > 0) dispatcher.recheck();
  }

  function tellOthers(): void {
    deps.shared?.hints.tell({ type: 'nodes' });
  }

  async function follow(): Promise<Mirror | null> {
    if (deps.shared === null) return null;
    const { shared } = deps;
    return startMirror({
      clock,
      log,
      store,
      roster,
      known: knownDescriptor,
      lives: (other) => shared.lives(other),
      refresh,
      elsewhere: (node, moved) => connections.elsewhere(node, moved),
      overtaken: (node, epoch) => connections.overtaken(node, epoch),
    });
  }

  function knownDescriptor(id: string, hash: string): Descriptor | undefined {
    const node = roster.find(id);
    if (node === undefined) return deps.known(id, hash);
    return node.descriptor_hash === hash ? (node.descriptor ?? undefined) : undefined;
  }

  async function change(
    id: string,
    write: () => Promise<NodeRecord | undefined>,
  ): Promise<NodeView | undefined> {
    const record = await write();
    if (record === undefined) return undefined;
    changes++;
    const node = roster.find(id);
    if (node !== undefined) {
      node.record = record;
      apply(node);
    }
    void deps.changed();
    return node === undefined ? undefined : view(node);
  }

  /** Brings what the operator wishes of a node into force here. */
  function apply(node: FleetNode): void {
    if (node.record.revoked_at !== null && node.state !== 'revoked')
      connections.step(node, { type: 'revoked' });
    roster.sync(node);
    armDrain(node);
    dispatcher.pump(node);
    dispatcher.recheck();
  }

  function armDrain(node: FleetNode): void {
    node.drain_timer?.cancel();
    node.drain_timer = null;
    const { drain_deadline_at } = node.record;
    if (drain_deadline_at === null) return;
    const left_ms = Math.max(0, drain_deadline_at - clock.wall_ms());
    node.drain_timer = clock.after(left_ms, () => {
      node.drain_timer = null;
      for (const attempt of [...node.attempts.values()]) {
        dispatcher.grants.takeBack(attempt, 'Its node was drained, and the deadline of the drain is over.');
      }
    });
  }

  /** A credential that was replaced ends its link too: whoever else has it must not live on by never letting go. */
  function armCredential(node: FleetNode): void {
    node.credential_timer?.cancel();
    node.credential_timer = null;
    const own = node.record.credentials.find(({ hash }) => hash === node.credential);
    if (node.link === null || own === undefined || own.expires_at === null) return;
    const left_ms = Math.max(0, own.expires_at - clock.wall_ms());
    node.credential_timer = clock.after(left_ms, () => {
      const message = 'The credential of this link was replaced, and its time is over.';
      if (node.credential === own.hash) node.link?.close(CLOSE.revoked, { code: 'revoked', message });
    });
  }

  async function rotate(id: string, overlap_ms: number): Promise<RotatedCredential | undefined> {
    const now = clock.wall_ms();
    const credential = makeCredential('node', random);
    const old_expires_at = now + overlap_ms;
    const record = {
      id: makeId('credential', now, random.bytes(10)),
      hash: hashCredential(credential),
      created_at: now,
      expires_at: null,
    };
    if (!(await store.rotateCredential(id, record, old_expires_at))) return undefined;
    await deps.changed();
    return { id, credential, old_expires_at };
  }

  async function forget(id: string): Promise<boolean> {
    const node = roster.find(id);
    if (node !== undefined && node.link !== null) {
      throw new FlotillaError('conflict', 'The node is connected: revoke it first, or stop its daemon.');
    }
    const deleted = await store.deleteNode(id);
    if (deleted) {
      await deps.changed();
    }
    return deleted;
  }

  function upgrade(
    request: IncomingMessage,
    socket: Duplex,
    head: Buffer,
    refuseWith: (error: FlotillaError) => void,
    linked: () => void,
  ): void {
    const refuse = (code: FlotillaError['code'], message: string) =>
      refuseWith(new FlotillaError(code, message));
    let found: NodePeer;
    try {
      found = peer(/^Bearer\s+(\S+)$/i.exec(request.headers.authorization ?? '')?.[1] ?? '');
    } catch (error) {
      if (error instanceof FlotillaError) return refuseWith(error);
      throw error;
    }
    if (request.headers.upgrade?.toLowerCase() !== 'websocket') {
      return refuse('invalid_request', 'The node link is a WebSocket.');
    }
    const misshaped = (error: Error) =>
      refuse('invalid_request', `This is no WebSocket handshake: ${error.message}.`);
    server.once('wsClientError', misshaped);
    server.handleUpgrade(request, socket, head, (ws) => {
      tellUnreadable(ws, found.node.id, log);
      void join(found, ws, writesOn(socket)).then((joined) => {
        if (joined) linked();
      });
    });
    server.off('wsClientError', misshaped);
  }

  function peer(credential: string): NodePeer {
    if (closing)
      throw new FlotillaError(
        'unavailable',
        'This control plane is stopping; another try will find it back.',
      );
    const hash = hashCredential(credential);
    const found = roster.byCredential(hash, clock.wall_ms());
    if (found === undefined) {
      throw new FlotillaError(
        'unauthorized',
        'This node credential is not known here: the node was deleted, or belongs to another fleet. ' +
          'On its machine, `flotilla node leave`, then `flotilla join` with a new token.',
      );
    }
    if (found.revoked)
      throw new FlotillaError('revoked', "The node's credential was withdrawn or has expired.");
    return { node: found.node, credential: hash };
  }

  async function join(found: NodePeer, ws: LinkSocket, writes: LinkWrites): Promise<boolean> {
    const { heartbeat_ms } = timings;
    const registration = await takeRegistration(
      { clock, log, epochs, replica, heartbeat_ms, inUseElsewhere },
      found.node,
      ws,
      writes,
    );
    if (registration === undefined) return false;
    try {
      accept(found, registration);
      return true;
    } catch (error) {
      log.warn({ node: found.node.id, error }, 'A node was admitted, and could not be taken up.');
      ws.terminate();
      return false;
    }
  }

  /** Who had the last link that is known of is the process that is asked about: of a replica that died nobody is asked. */
  async function inUseElsewhere(
    node: FleetNode,
    { boot_id, epoch = -1 }: NodeMessageOf<'node.register'>,
  ): Promise<boolean> {
    if (deps.shared === null || node.replica === null || epoch >= node.epoch) return false;
    return (
      (await deps.shared.questions.ask(node.replica, { type: 'in_use', node: node.id, boot_id })) === true
    );
  }

  /** @throws FlotillaError when that has become impossible while the node was being admitted */
  function accept({ node, credential }: NodePeer, registration: Registration): void {
    if (closing) throw new FlotillaError('unavailable', 'This control plane is stopping.');
    if (node.record.revoked_at !== null)
      throw new FlotillaError('revoked', "The node's credential was withdrawn.");
    connections.take(node, registration);
    node.credential = credential;
    armCredential(node);
  }

  /**
   * The wait for the first of those that did not come back is over, and with it that for all: they were silent from the
   * start, together. They count for as long as the brake then holds, or not at all: else those that were taken away while no
   * control plane ran would count for ever.
   */
  function countMissing(): void {
    // What has come back to another replica is not missed.
    const missing = [...awaited].filter((node) => node.replica === null);
    awaited.clear();
    for (const node of missing) {
      known.add(node);
      suspect.add(node);
    }
    moveBrake();
    if (brake.held_since_ms !== null) return;
    for (const node of missing) {
      known.delete(node);
      suspect.delete(node);
    }
  }

  function moveBrake(): void {
    const held = brake.held_since_ms !== null;
    brake = stepBrake(brake, suspect.size, known.size, clock.now_ms());
    const holds = brake.held_since_ms !== null;
    brake_timer?.cancel();
    // Until it is released: a timer may fire a moment early.
    brake_timer = holds ? clock.after(brake.held_since_ms! + BRAKE_MAX_MS - clock.now_ms(), moveBrake) : null;
    if (held === holds) return;
    const counts = { suspect: suspect.size, known: known.size };
    if (holds) log.error(counts, `brake: ${BRAKE_ALARM}`);
    else {
      log.info(counts, 'brake released');
      for (const node of suspect) if (node.state === 'offline') known.delete(node);
      for (const node of suspect) if (node.state === 'offline') suspect.delete(node);
    }
    dispatcher.stores.holdBack(holds);
  }

  async function flushSeen(): Promise<void> {
    seen_timer = null;
    const now_ms = clock.now_ms();
    const rows: { id: string; at: number }[] = [];
    for (const { id, liveness, last_seen_at: at } of roster.all()) {
      if (at !== null && (liveness.last_beat_ms ?? -Infinity) > seen_flushed_ms) rows.push({ id, at });
    }
    try {
      await store.flushSeen(rows);
      seen_flushed_ms = now_ms;
    } catch (error) {
      log.warn({ error }, 'When nodes were last heard of could not be written; it will be tried again.');
    }
  }

  async function close(): Promise<void> {
    closing = true;
    // First, since a node whose link goes away is waited for. When it was last heard of is written with that.
    for (const node of roster.all()) node.link?.close(CLOSE.goingAway);
    seen_timer?.cancel();
    watch.close();
    brake_timer?.cancel();
    for (const node of roster.all()) {
      node.drain_timer?.cancel();
      node.credential_timer?.cancel();
      for (const timer of node.away) timer.cancel();
    }
    await Promise.all([states.close(), descriptors.close()]);
  }
}

/**
 * A frame that cannot be read closes the socket by itself; the node would only see that, again and again. A function of its
 * own: what listens stays for as long as the link, and with it everything that it was made beside, such as the request.
 */
function tellUnreadable(ws: WebSocket, node: string, log: Log): void {
  ws.on('error', (error) =>
    log.warn({ node, reason: error.message }, 'A node link sent what cannot be read.'),
  );
}
