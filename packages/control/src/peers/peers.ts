import type { Bus, Clock, Log, Random, Timer } from '@flotilla/core';
import type { InventoryItem } from '@flotilla/protocol';
import type { BodyMemory } from '../body-memory.ts';
import type { Hints } from '../bus/hints.ts';
import type { Questions } from '../bus/questions.ts';
import type { Dispatcher, OthersWork } from '../dispatch/dispatcher.ts';
import type { FleetNode, ModelSpot } from '../fleet/node.ts';
import type { Roster } from '../fleet/roster.ts';
import { type Announcements, type OthersJob, createAnnouncements } from './announcements.ts';
import { type Channel, openChannel } from './channel.ts';
import { createHolding } from './holding.ts';
import { createOwned } from './owned.ts';
import { workSchema } from './peer-messages.ts';

/**
 * Attached work across replicas: a request goes to the replica whose node has a slot free first, wherever its client is.
 * One announces what waits (announcements.ts), another claims it for a slot; the body goes there and the answer comes
 * back on the channel between the two (channel.ts), which the one who has the client owns (owned.ts) and the one who has
 * the node holds (holding.ts). Nothing here outlives a process: clients are told, nodes come back with what they have.
 */
export interface Peers {
  died(replica: string): void;
  close(): void;
}

export interface PeersDeps {
  bus: Bus;
  hints: Pick<Hints, 'take' | 'lost'>;
  questions: Pick<Questions, 'take'>;
  clock: Clock;
  random: Random;
  log: Log;
  replica: string;
  roster: Roster;
  dispatcher: Dispatcher;
  queue_bound: number;
  /** A request of another replica's client is in memory here as well, while its node has it. */
  memory: BodyMemory;
  /** Whether that replica is there, as far as is known. */
  lives(replica: string): Promise<boolean>;
  /** Those that are there besides this one, as far as is known. */
  others(): Iterable<string>;
}

const MEMORY_RETRY_MS = 250;
const MESSAGE_MOST_BYTES = 1024 * 1024;

export function startPeers(deps: PeersDeps): Peers {
  const { bus, clock, dispatcher, roster, replica } = deps;
  const channels = new Map<string, Channel>();
  const owned = createOwned({ clock, dispatcher, roster });
  const holding = createHolding({
    clock,
    memory: deps.memory,
    dispatcher,
    channelOf: (owner) => channels.get(owner),
  });
  const { places } = dispatcher.deps;
  let waking = false;
  let memory_timer: Timer | null = null;
  let closed = false;
  const work: Announcements = createAnnouncements({
    ...deps,
    places,
    share: dispatcher.share,
    channels: () => (bus.connected ? [...deps.others()].map(channelTo) : []),
    claimed: (job) => holding.claims.has(job),
    changed: wake,
  });

  bus.listen({
    told(from, data) {
      if (closed || data.byteLength > MESSAGE_MOST_BYTES) return;
      const announced = readWork(data);
      if (announced === undefined) deps.hints.take(from, data);
      else work.take(from, announced);
    },
    sent(from, data) {
      if (closed || deps.questions.take(from, data)) return;
      const known = channels.get(from);
      if (known !== undefined) known.take(data);
      // A late message of one that is no more opens nothing.
      else whereAlive(from, () => channelTo(from).take(data));
    },
    connected() {
      if (closed) return;
      for (const channel of channels.values()) channel.restart();
      deps.hints.lost();
    },
    disconnected() {
      for (const channel of channels.values()) channel.close();
    },
  });

  const others: OthersWork = {
    present: true,
    headFor: (node) => firstFor(node)?.job ?? null,
    take,
    headOf: (model) => work.room.headOf(model),
    wake,
    waits: (job) => work.waits(job),
    left: (job) => work.left(job),
    letGo: (node) => holding.held.letGo(node, channelTo),
    ask(node, link, items) {
      for (const [owner, own] of byOwner(items)) {
        const ask = () => holding.adoptions.ask(owner, channelTo(owner), node, link, own);
        whereAlive(owner, ask, () => holding.adoptions.abandon(node, link, own));
      }
    },
  };
  dispatcher.others = others;

  return {
    died(other) {
      work.died(other);
      channels.get(other)?.close();
      channels.delete(other);
      holding.died(other);
    },
    close() {
      closed = true;
      memory_timer?.cancel();
      work.close();
      for (const channel of channels.values()) channel.close();
    },
  };

  function whereAlive(other: string, run: () => void, otherwise: () => void = () => undefined): void {
    // Where the store does not answer, nobody knows that it is not.
    const known = deps.lives(other).catch(() => true);
    void known.then((alive) => {
      if (closed) return;
      if (alive) run();
      else otherwise();
    });
  }

  function firstFor(node: FleetNode): { job: OthersJob; spot: ModelSpot } | null {
    const first = work.room.firstFor(node);
    return first !== null && fits(first.job) ? first : null;
  }

  /** Bodies go without a word: who waits for their memory looks again. */
  function fits({ body_length }: OthersJob): boolean {
    const { memory } = deps;
    if (memory.held_bytes === 0 || memory.fits(body_length)) return true;
    memory_timer ??= clock.after(MEMORY_RETRY_MS, () => {
      memory_timer = null;
      wake();
    });
    return false;
  }

  function take(node: FleetNode): void {
    const first = firstFor(node);
    if (first !== null) claim(first);
  }

  function claim({ job, spot }: { job: OthersJob; spot: ModelSpot }): void {
    work.forget(job);
    const { owner, body_length: bytes } = job;
    holding.claims.claim(owner, channelTo(owner), job.id, { spot, bytes });
  }

  /** Work came, or nodes: once for all that changed in one turn. */
  function wake(): void {
    if (waking) return;
    waking = true;
    queueMicrotask(() => {
      waking = false;
      for (let next = work.room.takeAny(); next !== null; next = work.room.takeAny()) {
        if (!fits(next.job)) return void work.room.enter(next.job, true);
        claim(next);
      }
    });
  }

  function channelTo(other: string): Channel {
    const known = channels.get(other);
    if (known !== undefined) return known;
    const channel: Channel = openChannel(bus, other, replica < other, clock, {
      message(message) {
        if (message.type === 'work') return work.take(other, message);
        // A credit is for whoever sends that stream.
        if (owned.take(other, channel, message)) return;
        holding.take(other, channel, message);
      },
      frame(frame) {
        owned.frame(other, frame);
        holding.frame(other, frame);
      },
      holds: () => holding.held.holds(other),
      synced(theirs) {
        owned.synced(other, channel, theirs);
        holding.synced(other, channel);
        work.synced(channel);
      },
      broken() {
        owned.broken(other);
        holding.broken(other);
      },
    });
    channels.set(other, channel);
    return channel;
  }
}

function readWork(data: Uint8Array): ReturnType<typeof workSchema.parse> | undefined {
  const text = Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString();
  if (!text.startsWith('{"type":"work')) return undefined;
  try {
    return workSchema.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined;
  }
}

function byOwner(items: readonly InventoryItem[]): Map<string, InventoryItem[]> {
  return Map.groupBy(items, ({ owner }) => owner ?? '');
}
