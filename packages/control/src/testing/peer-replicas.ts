import {
  type Bus,
  type BusListener,
  type NodeRecord,
  type Random,
  slotKey,
  stepLiveness,
  timings,
} from '@flotilla/core';
import { ManualClock } from '@flotilla/core/testing';
import { type ControlMessage, END_OUTCOME, FRAME_KIND } from '@flotilla/protocol';
import { createBodyMemory } from '../body-memory.ts';
import type { JobEnd } from '../dispatch/active-job.ts';
import type { Attempt } from '../dispatch/attempt.ts';
import { type Dispatcher, createDispatcher } from '../dispatch/dispatcher.ts';
import { takeAttemptMessage, takeFrame } from '../dispatch/node-messages.ts';
import type { Link } from '../fleet/link.ts';
import type { FleetNode } from '../fleet/node.ts';
import { type Roster, createRoster } from '../fleet/roster.ts';
import { type PeerMessage, readPeerMessage } from '../peers/peer-messages.ts';
import { type Peers, startPeers } from '../peers/peers.ts';
import { createModelRoutes } from '../upstreams/model-routes.ts';
import { memoryLog } from './memory-log.ts';

/** Replicas that share a bus, in virtual time: the real scheduler and the real peers, on nodes whose links a test plays. */
export interface PeerReplicas {
  readonly clock: ManualClock;
  /** Everything that passed, or was lost, on channels: who said it to whom. */
  readonly said: { from: string; to: string; message: PeerMessage }[];
  /** Which messages are lost; text of channels is read, anything else is undefined. */
  lose: (from: string, to: string, message: PeerMessage | undefined) => boolean;
  /** Adds a replica that knows all of these nodes; none is linked to it yet. */
  replica(id: string, nodes: readonly NodeRecord[], body_memory_bytes?: number): PeerReplica;
  /** Lets time pass, and what becomes due on the way. */
  pass(ms: number): Promise<void>;
}

interface PeerReplica {
  readonly id: string;
  readonly dispatcher: Dispatcher;
  readonly roster: Roster;
  readonly peers: Peers;
  readonly memory: ReturnType<typeof createBodyMemory>;
  node(id: string): FleetNode;
  /** The node is linked here, online and idle. */
  link(id: string, epoch?: number): PlayedLink;
  /** The node is linked there. */
  elsewhere(id: string, replica: string): void;
  /** A client's request, and what comes of it. */
  ask(job: string, model: string, body?: Uint8Array): Asked;
}

/** A node's end: what it was told, and what it says. */
interface PlayedLink extends Link {
  readonly told: ControlMessage[];
  readonly offers: Attempt[];
  /** The offered request is asked for at its backend, and the first part of the answer comes. */
  begins(attempt: Attempt, text: string): void;
  ends(attempt: Attempt): void;
  released(attempt: Attempt): void;
}

interface Asked {
  text: string;
  end: JobEnd | null;
  leave(): void;
}

export function nodeRecord(id: string, model: string, slots = 1): NodeRecord {
  return {
    id,
    name: id,
    labels: {},
    allowed_models: [],
    state: 'offline',
    cordoned: false,
    drain_deadline_at: null,
    epoch: 1,
    descriptor: {
      name: id,
      labels: {},
      version: '1',
      pools: [{ id: 'p', capacity: slots, capacity_from: 'config' }],
      backends: [{ id: 'b', kind: 'x', pool: 'p', models: [{ id: model, operations: ['chat'] }] }],
    },
    descriptor_hash: 'h',
    close_reason: null,
    created_at: 0,
    last_seen_at: 0,
    revoked_at: null,
    credentials: [],
  };
}

const H_MS = 5000;
const WAY_MS = 2;
/** No two of its choices are alike, and none depends on the run. */
const random: Random = { next: () => 0.5, bytes: (length) => new Uint8Array(length) };

export function peerReplicas(): PeerReplicas {
  const clock = new ManualClock();
  const listeners = new Map<string, BusListener>();
  const world: PeerReplicas = {
    clock,
    said: [],
    lose: () => false,
    replica: (id, nodes, body_memory_bytes = 2 ** 30) => openReplica(id, nodes, body_memory_bytes),
    async pass(ms) {
      for (let passed_ms = 0; passed_ms < ms; passed_ms++) {
        clock.advance(1);
        await new Promise(setImmediate);
      }
    },
  };
  return world;

  function busOf(own: string): Bus {
    const carry = (to: string, hear: (listener: BusListener) => void, data: Uint8Array) => {
      // Behind the kind, the session and the number.
      const message = data[0] === 1 ? readPeerMessage(data.subarray(9)) : undefined;
      if (message !== undefined) world.said.push({ from: own, to, message });
      if (world.lose(own, to, message)) return;
      clock.after(WAY_MS, () => {
        const listener = listeners.get(to);
        if (listener !== undefined) hear(listener);
      });
    };
    return {
      connected: true,
      tell(data) {
        for (const to of listeners.keys())
          if (to !== own) carry(to, (listener) => listener.told(own, data), data);
      },
      send: (to, data) => carry(to, (listener) => listener.sent(own, data), data),
      listen: (listener) => void listeners.set(own, listener),
      close: () => Promise.resolve(),
    };
  }

  function openReplica(id: string, nodes: readonly NodeRecord[], body_memory_bytes: number): PeerReplica {
    const timing = timings(H_MS);
    const roster = createRoster(clock, timing);
    roster.load(nodes, []);
    const dispatcher = createDispatcher({
      clock,
      random,
      log: memoryLog(),
      replica: id,
      places: createModelRoutes(roster, { spots: () => undefined }),
      settings: {
        queue_timeout_ms: 60_000,
        run_timeout_ms: 600_000,
        first_byte_timeout_ms: 300_000,
        idle_timeout_ms: 120_000,
        queue_bound: 1000,
      },
      metrics: { attemptEnded() {}, queueWaited() {} },
      record() {},
    });
    const memory = createBodyMemory(body_memory_bytes);
    const peers = startPeers({
      bus: busOf(id),
      hints: { take() {}, lost() {} },
      questions: { take: () => false },
      clock,
      random,
      log: memoryLog(),
      replica: id,
      roster,
      dispatcher,
      queue_bound: 1000,
      memory,
      lives: () => Promise.resolve(true),
      others: () => [...listeners.keys()].filter((other) => other !== id),
    });
    const node = (name: string) => roster.find(name)!;
    return {
      id,
      dispatcher,
      roster,
      peers,
      memory,
      node,
      link(name, epoch = 1) {
        const own = node(name);
        const link = playedLink(dispatcher, own, epoch);
        own.replica = null;
        own.epoch = epoch;
        own.link = link;
        for (const type of ['registered', 'reconciled'] as const)
          own.liveness = stepLiveness(own.liveness, { type }, clock.now_ms(), timing);
        roster.setHealth(own, [{ id: 'b', health: 'healthy', models: [] }]);
        roster.sync(own);
        dispatcher.recheck();
        return link;
      },
      elsewhere(name, replica) {
        const own = node(name);
        own.link = null;
        own.replica = replica;
        const event = { type: 'elsewhere', state: 'online', reason: 'linked there' } as const;
        own.liveness = stepLiveness(own.liveness, event, clock.now_ms(), timing);
        roster.setHealth(own, [{ id: 'b', health: 'healthy', models: [] }]);
        roster.sync(own);
      },
      ask: (job, model, body = Buffer.from('{}')) => ask(dispatcher, job, model, body),
    };
  }
}

function ask(dispatcher: Dispatcher, id: string, model: string, body: Uint8Array): Asked {
  const asked: Asked = { text: '', end: null, leave: () => dispatcher.cancel(job, 'The client left.') };
  const request = {
    id,
    request_id: id,
    key: 'key_a',
    model,
    operation: 'chat' as const,
    body,
    streaming: true,
    add_usage: false,
    labels: {},
    session: null,
    affinity: null,
    priority: 0,
    via: [],
    traceparent: null,
  };
  const job = dispatcher.submit(request, {
    started() {},
    head() {},
    body(attempt, bytes) {
      asked.text += Buffer.from(bytes).toString();
      dispatcher.handed(attempt.job);
      dispatcher.credit(attempt, attempt.received);
    },
    discard: () => void (asked.text = ''),
    fault: () => null,
    finished: (end) => void (asked.end = end),
  });
  return asked;
}

function playedLink(dispatcher: Dispatcher, node: FleetNode, epoch: number): PlayedLink {
  const told: ControlMessage[] = [];
  const offers: Attempt[] = [];
  let streams = 0;
  const of = (attempt: Attempt) => ({ job: attempt.job.id, attempt: attempt.number });
  const frame = (attempt: Attempt, kind: 2 | 3 | 4, offset: number, payload: Uint8Array) =>
    takeFrame(dispatcher, attempt, { kind, stream: attempt.stream, offset, payload });
  return {
    epoch,
    open: true,
    fences: true,
    heard: 0,
    rtt_ms: 0,
    told,
    offers,
    send: (message) => void told.push(message),
    offer(attempt) {
      attempt.stream = ++streams;
      offers.push(attempt);
    },
    resume(attempt) {
      attempt.stream = ++streams;
      return attempt.stream;
    },
    closeStream: (attempt) => void (attempt.stream = 0),
    credit() {},
    roundTrip() {},
    alive: () => Promise.resolve(true),
    close() {
      for (const attempt of offers) attempt.stream = 0;
    },
    begins(attempt, text) {
      takeAttemptMessage(dispatcher, node, { type: 'job.started', ...of(attempt) });
      frame(attempt, FRAME_KIND.responseHead, 0, Buffer.from('{"status":200,"headers":[]}'));
      frame(attempt, FRAME_KIND.responseBody, attempt.received, Buffer.from(text));
    },
    ends(attempt) {
      const length = attempt.received;
      frame(attempt, FRAME_KIND.end, length, Uint8Array.of(END_OUTCOME.complete));
      const usage = { prompt_tokens: 1, completion_tokens: 1, cached_tokens: 0, estimated: false };
      takeAttemptMessage(dispatcher, node, {
        type: 'job.completed',
        ...of(attempt),
        result: { status: 200, length },
        usage,
        total_ms: 1,
      });
    },
    released(attempt) {
      if (!node.attempts.has(slotKey(attempt.job.id, attempt.number))) return;
      takeAttemptMessage(dispatcher, node, { type: 'job.released', ...of(attempt), started: true });
    },
  };
}
