import {
  type CatalogueRecord,
  type Clock,
  type DiscoveryEnd,
  type DiscoveryNote,
  type DiscoveryRecord,
  type Log,
  type Random,
  type Store,
  type Timer,
  discoveryEnd,
  discoveryRefusal,
} from '@flotilla/core';
import {
  type DiscoveryReason,
  type DiscoveryRequest,
  type DiscoveryStage,
  type NodeMessageOf,
  makeId,
} from '@flotilla/protocol';
import { latestWriter } from '../fleet/latest-writer.ts';
import type { Link } from '../fleet/link.ts';
import type { FleetNode } from '../fleet/node.ts';
import type { Roster } from '../fleet/roster.ts';
import { repeat } from '../repeat.ts';

/**
 * Requests to nodes for their models.
 *
 *     pending ──node's first progress──▶ running ──result──▶ completed | failed | timed_out
 *        └────────────────────────────────┴── node lost, too old ──▶ failed     └── deadline ──▶ timed_out
 *
 * The store is the truth: whoever moves a row there first has moved it. Here are only the open ones, so that the request
 * can be pushed at once, and again with each registration and beat until it has ended: the node knows it by its id, and
 * answers as it stands. What another replica made, or this one before it was started anew, is found by looking.
 */
export interface Discoveries {
  /** Asks a node, or shares what is in flight. Undefined: there is no such node. */
  ask(node: string, backend: string | null): Promise<DiscoveryRecord | undefined>;
  find(id: string): Promise<DiscoveryRecord | undefined>;
  /** As `find`, when it has ended or has another stage than this, or after so long. */
  wait(id: string, patience: Patience): Promise<DiscoveryRecord | undefined>;
  catalogues(node: string): Promise<CatalogueRecord[]>;
  /** Another replica has opened one. */
  look(): Promise<void>;

  // ── For the links ──
  /** The node has registered: it is asked for all that is open. */
  joined(node: FleetNode): void;
  /** What a beat's acknowledgement carries. */
  openOf(node: FleetNode): DiscoveryRequest[];
  take(node: FleetNode, link: Link, message: DiscoveryMessage): void;
  /** The node's lease is over: nobody answers any more. */
  lost(node: FleetNode): void;
  close(): Promise<void>;
}

type DiscoveryMessage = NodeMessageOf<'discovery.progress'> | NodeMessageOf<'discovery.result'>;

interface Patience {
  wait_ms: number;
  /** The stage that is known; undefined: the one it has now. */
  stage: DiscoveryStage | undefined;
  gone: AbortSignal;
}

export interface DiscoveriesDeps {
  clock: Clock;
  random: Random;
  log: Log;
  store: Store;
  roster: Roster;
  timeout_ms: number;
  /** Tells the other replicas that this node is to be asked; absent: there are none. */
  tell?: (node: string) => void;
}

interface Open {
  readonly id: string;
  readonly node: string;
  readonly backend: string | null;
  /** By this machine's clock; the store's decides. */
  expires_ms: number;
  deadline: Timer | null;
}

/** How soon another replica's request is found, and one whose end was written elsewhere. */
const LOOK_EVERY_MS = 1000;
/** At least so long until a request whose time is over is looked at, also when somebody else is just ending it. */
const RECHECK_MS = 20;
/** More are looked at when these have ended. */
const OPEN_MOST = 1000;
/** A beat's acknowledgement carries so many; the others come with later ones. */
const IN_BEAT_MOST = 32;
/** Results of one node that are being written at once. It sends again what it gets no answer to. */
const RESULTS_AT_ONCE = 8;

/** What is open in the store is known when it resolves: a node that comes back is asked for it at once. */
export async function startDiscoveries(deps: DiscoveriesDeps): Promise<Discoveries> {
  const { clock, random, log, store, roster } = deps;
  const open = new Map<string, Open>();
  const by_node = new Map<string, Map<string, Open>>();
  /** Whom to wake when a request may have moved. */
  const waiting = new Map<string, Set<() => void>>();
  const writing = new Map<string, number>();
  let failing = false;
  let closed = false;
  const notes = latestWriter<DiscoveryNote & { id: string }>(
    async (rows) => {
      await store.noteDiscoveries(rows);
      for (const { id } of rows) wake(id);
    },
    clock,
    log,
    'stages of model discoveries',
  );
  await look();
  const looking = repeat(clock, () => LOOK_EVERY_MS, look);

  return {
    ask,
    find,
    wait,
    catalogues: (node) => store.loadCatalogues(node),
    joined(node) {
      for (const request of own(node)) void push(node, request);
    },
    openOf: (node) => own(node).slice(0, IN_BEAT_MOST).map(travelling),
    take(node, link, message) {
      if (message.type === 'discovery.progress') return progressed(node, link, message);
      void told(node, link, message);
    },
    look,
    lost(node) {
      for (const request of own(node)) void refuse(request, 'offline');
    },
    async close() {
      closed = true;
      await looking.stop();
      for (const id of waiting.keys()) wake(id);
      for (const request of open.values()) request.deadline?.cancel();
      await notes.close();
    },
  };

  async function ask(node_id: string, backend: string | null): Promise<DiscoveryRecord | undefined> {
    const node = roster.find(node_id);
    if (node === undefined) return undefined;
    const id = makeId('discovery', clock.wall_ms(), random.bytes(10));
    const refused = refusalOf(node);
    const record = await store.openDiscovery({
      id,
      node: node.id,
      backend,
      timeout_ms: deps.timeout_ms,
      refused,
    });
    if (record.finished_at !== null) return record;
    const request = keep(record);
    if (record.id !== id) return record; // whoever made it has pushed it
    await push(node, request);
    return record;
  }

  function refusalOf(node: FleetNode): DiscoveryReason | null {
    // The replica that it is linked to asks it, and says why it does not.
    if (node.replica !== null && node.state === 'online') return null;
    const connected = node.link?.open === true;
    return discoveryRefusal({ state: node.state, connected, features: node.features });
  }

  /** At once; resolves when a refusal is written. */
  async function push(node: FleetNode, request: Open): Promise<void> {
    const refused = refusalOf(node);
    if (refused !== null) return refuse(request, refused);
    if (node.replica !== null) deps.tell?.(node.id);
    node.link?.send({ type: 'discovery.request', ...travelling(request) });
  }

  function travelling({ id, backend, expires_ms }: Open): DiscoveryRequest {
    const left_ms = Math.max(0, Math.round(expires_ms - clock.now_ms()));
    return { request: id, ...(backend === null ? {} : { backend }), left_ms };
  }

  // ── What the node says ──

  function progressed(node: FleetNode, link: Link, message: NodeMessageOf<'discovery.progress'>): void {
    const request = open.get(message.request);
    // One that is not open here has ended, or is found and pushed within a second: the node may forget it.
    if (request?.node !== node.id) {
      link.send({ type: 'discovery.ack', request: message.request, outcome: 'stale' });
      return;
    }
    const { stage, backend } = message;
    notes.put({ id: request.id, node: node.id, stage, waiting_for: backend ?? request.backend });
  }

  async function told(
    node: FleetNode,
    link: Link,
    { request: id, results }: NodeMessageOf<'discovery.result'>,
  ): Promise<void> {
    const running = writing.get(node.id) ?? 0;
    if (running >= RESULTS_AT_ONCE) return;
    writing.set(node.id, running + 1);
    try {
      const request = open.get(id);
      const asked = request === undefined ? await store.findDiscovery(id) : request;
      // What another node was asked is not this one's to end.
      const own = asked?.node === node.id ? asked : undefined;
      const outcome =
        own === undefined
          ? 'stale'
          : await store.finishDiscovery({ id, node: node.id, ...discoveryEnd(results, own.backend) });
      if (own !== undefined) forget(id);
      if (link.open) link.send({ type: 'discovery.ack', request: id, outcome });
    } catch (error) {
      log.warn({ node: node.id, discovery: id, error }, 'What a node told of its models was not written.');
    } finally {
      const left = (writing.get(node.id) ?? 1) - 1;
      if (left > 0) writing.set(node.id, left);
      else writing.delete(node.id);
    }
  }

  async function refuse({ id, node }: Open, reason: DiscoveryReason): Promise<void> {
    const end: DiscoveryEnd = {
      id,
      node,
      state: 'failed',
      reason,
      stage: null,
      waiting_for: null,
      results: [],
    };
    try {
      await store.finishDiscovery(end);
      forget(id);
    } catch (error) {
      log.warn({ node, discovery: id, error }, 'The end of a model discovery was not written.');
    }
  }

  // ── The open ones ──

  function own(node: FleetNode): Open[] {
    return [...(by_node.get(node.id)?.values() ?? [])];
  }

  function keep({ id, node, backend, left_ms }: DiscoveryRecord): Open {
    const expires_ms = clock.now_ms() + left_ms;
    const request = open.get(id) ?? { id, node, backend, expires_ms, deadline: null };
    request.expires_ms = expires_ms;
    request.deadline?.cancel();
    request.deadline = closed ? null : clock.after(Math.max(RECHECK_MS, left_ms), () => void look());
    open.set(id, request);
    const of_node = by_node.get(node) ?? new Map<string, Open>();
    by_node.set(node, of_node.set(id, request));
    return request;
  }

  function forget(id: string): void {
    const request = open.get(id);
    if (request !== undefined) {
      request.deadline?.cancel();
      open.delete(id);
      const of_node = by_node.get(request.node);
      of_node?.delete(id);
      if (of_node?.size === 0) by_node.delete(request.node);
    }
    wake(id);
  }

  /** Ends what is over, takes up what was made elsewhere, lets go of what was ended elsewhere. */
  async function look(): Promise<void> {
    if (closed) return;
    const before = [...open.keys()];
    let rows: DiscoveryRecord[];
    try {
      rows = await store.openDiscoveries(OPEN_MOST);
    } catch (error) {
      if (!failing) log.warn({ error }, 'Model discoveries cannot be read; it is tried again each second.');
      failing = true;
      return;
    }
    failing = false;
    const found = new Set(rows.map(({ id }) => id));
    for (const row of rows) {
      const is_new = !open.has(row.id);
      const request = keep(row);
      const node = roster.find(row.node);
      if (is_new && node?.link?.open === true) void push(node, request);
    }
    if (rows.length < OPEN_MOST) for (const id of before) if (!found.has(id)) forget(id);
  }

  // ── Who waits ──

  async function find(id: string): Promise<DiscoveryRecord | undefined> {
    const record = await store.findDiscovery(id);
    if (record === undefined || record.finished_at !== null || record.left_ms > 0) return record;
    await look();
    return store.findDiscovery(id);
  }

  async function wait(id: string, { wait_ms, stage, gone }: Patience): Promise<DiscoveryRecord | undefined> {
    const until_ms = clock.now_ms() + wait_ms;
    for (let known = stage; ; ) {
      // Before it is read: what moves after the reading is not missed.
      const moved = whenMoved(id, gone);
      const record = await find(id);
      known ??= record?.stage;
      const left_ms = until_ms - clock.now_ms();
      const over = record === undefined || record.finished_at !== null || record.stage !== known;
      if (over || left_ms <= 0 || gone.aborted || closed) {
        moved.cancel();
        return record;
      }
      await moved.within(left_ms);
    }
  }

  function whenMoved(
    id: string,
    gone: AbortSignal,
  ): { within(most_ms: number): Promise<void>; cancel(): void } {
    const { promise, resolve } = Promise.withResolvers<void>();
    const wakers = waiting.get(id) ?? new Set();
    waiting.set(id, wakers.add(resolve));
    const leave = () => resolve();
    gone.addEventListener('abort', leave);
    let timer: Timer | null = null;
    const cancel = () => {
      timer?.cancel();
      gone.removeEventListener('abort', leave);
      wakers.delete(resolve);
      if (wakers.size === 0 && waiting.get(id) === wakers) waiting.delete(id);
    };
    return {
      within(most_ms) {
        // What another replica wrote wakes nobody here.
        timer = clock.after(Math.min(most_ms, LOOK_EVERY_MS), resolve);
        return promise.finally(cancel);
      },
      cancel,
    };
  }

  function wake(id: string): void {
    for (const resolve of waiting.get(id) ?? []) resolve();
  }
}
