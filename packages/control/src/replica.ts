import type { Clock, Log, ReplicaRow, Store } from '@flotilla/core';
import { type Repeating, repeat } from './repeat.ts';

/**
 * This process among the rows of `replicas`:
 *
 *     starting ──no other row that moves or has a session, or all have the bus──▶ one of them (its row is bumped each second, and twice in H) ──leave()──▶ gone
 *         │                                                          └──its row is gone──▶ buried: it must stop
 *         └──another row is bumped while watched, and it or we have no bus──▶ refused, with the reason
 *
 * and the others, as this one sees them:
 *
 *     alive ──its row stands still for 4 H of looking──▶ dead: its open requests are ended, its row goes, `died` is told
 *       └──its row is gone──▶ left (`died` is told as well: what it held is nobody's)
 *
 * Nobody compares clocks: a row lives if its count moves while this process looks on, and time in which the store did
 * not answer is not time of looking. By the time that a row is given up, the leases that its replica renewed are over
 * (core/liveness.ts): it renews none of detached work once its own last bump is H old.
 */
export interface Replica {
  /** Whether that replica has a row, which is looked for where it is not known. */
  lives(replica: string): Promise<boolean>;
  /** Those that have a row besides this one, as last seen. */
  others(): Iterable<string>;
  /** How old the last bump that the store took is; 0 on the embedded store, which nobody else can open meanwhile. */
  bumpAge_ms(): number;
  leave(): Promise<void>;
}

type ReplicaStore = Pick<
  Store,
  'engine' | 'enterReplica' | 'bumpReplica' | 'endReplica' | 'listReplicas' | 'openSessions' | 'endOrphans'
>;
export interface ReplicaDeps {
  store: ReplicaStore;
  clock: Clock;
  log: Log;
  id: string;
  /** It can have others beside it. */
  bus: boolean;
  heartbeat_ms: number;
  /** Whether another lives is not known at once: what only reads can be done meanwhile. */
  waits: () => void;
  /** The row could not be bumped: whoever needs the store is to know, also where nobody is writing now. */
  failed: () => void;
  /** The row moves again, after more than H in which nodes' detached work was not renewed. */
  renewed: () => void;
  /** Another replica has taken this one for dead, ended its requests and serves in its place. */
  buried: () => void;
  /** Another replica is no more. */
  died: (replica: string) => void;
}

/** Of the interval of beats: a row that has stood still for so long is dead. */
export const DEAD_BEATS = 4;
const BUMP_MOST_MS = 1000;
/** Longer than two bumps: one may come late. */
const WATCH_MS = 2500;
/** And longer than one, where nothing else is heard of it either. */
const WATCH_KILLED_MS = 1200;
/** A look counts as so long at the most: between two of them the store may have been away. */
const LOOK_MOST_MS = 1500;

/** @throws Error if another replica lives on this store, and the two could not tell each other anything */
export async function joinReplicas(deps: ReplicaDeps): Promise<Replica> {
  const { store, clock, log, id, bus } = deps;
  /** Of the others: their count when it last moved, and how long it has been looked at since. */
  const seen = new Map<string, { bumps: number; still_ms: number }>();
  let looked_ms = clock.now_ms();
  let bumped_ms = clock.now_ms();
  // First of all, so that two that start at the same moment see each other, and both refuse.
  await store.enterReplica(id, bus);
  const bumping = keepBumping();
  try {
    const dead = await watchOthers(deps);
    for (const other of dead) await bury(other);
    if (bus) await look();
  } catch (error) {
    await leave();
    throw error;
  }
  const bumpAge_ms = () => (store.engine === 'embedded' ? 0 : clock.now_ms() - bumped_ms);
  return { lives, others: () => seen.keys(), bumpAge_ms, leave };

  function keepBumping(): Repeating {
    let failing = false;
    return repeat(
      clock,
      // Detached work is renewed until the last bump is H old: one of them may come late.
      () => Math.min(BUMP_MOST_MS, deps.heartbeat_ms / 2),
      async () => {
        const began_ms = clock.now_ms();
        try {
          const there = await store.bumpReplica(id);
          failing = false;
          if (!there) return deps.buried();
          const stood_ms = clock.now_ms() - bumped_ms;
          bumped_ms = began_ms;
          if (stood_ms > deps.heartbeat_ms) deps.renewed();
          if (bus) await look();
        } catch (error) {
          if (!failing) log.warn({ error }, 'The row of this replica cannot be written.');
          failing = true;
          deps.failed();
        }
      },
    );
  }

  async function look(): Promise<void> {
    const rows = await store.listReplicas();
    const now_ms = clock.now_ms();
    const passed_ms = Math.min(now_ms - looked_ms, LOOK_MOST_MS);
    looked_ms = now_ms;
    for (const { id: other, bumps } of rows) {
      if (other === id) continue;
      const before = seen.get(other);
      if (before?.bumps !== bumps) seen.set(other, { bumps, still_ms: 0 });
      else before.still_ms += passed_ms;
    }
    const there = new Set(rows.map((row) => row.id));
    for (const [other, { still_ms }] of seen) {
      if (there.has(other) && still_ms < DEAD_BEATS * deps.heartbeat_ms) continue;
      if (there.has(other)) await bury(other);
      seen.delete(other);
      deps.died(other);
    }
  }

  async function lives(replica: string): Promise<boolean> {
    if (replica !== id && !seen.has(replica)) await look();
    return replica === id || seen.has(replica);
  }

  async function bury(other: string): Promise<void> {
    const orphans = await store.endOrphans(other, clock.wall_ms());
    await store.endReplica(other);
    log.info(
      { replica: other, jobs: orphans },
      'A replica that died was cleared away; its open requests are ended.',
    );
  }

  async function leave(): Promise<void> {
    await bumping.stop();
    try {
      // What the store has not taken by now, it never will; and without the row nobody ends what stayed open.
      await store.endOrphans(id, clock.wall_ms());
      await store.endReplica(id);
    } catch (error) {
      log.warn(
        { error },
        'The row of this replica could not be removed; the next start will take it for dead.',
      );
    }
  }
}

/** @returns those that did not move, and may be buried at once */
async function watchOthers({ store, clock, id, bus, waits }: ReplicaDeps): Promise<string[]> {
  const before = await othersOf(store, id);
  const strangers = [...before.values()].filter((row) => !bus || !row.bus);
  if (strangers.length === 0) return [];
  // The data directory's lock lets no second process live on an embedded store.
  if (store.engine === 'embedded') return [...before.keys()];
  waits();
  // One that was killed has no session any more, and need not be watched for long. But for one bump: one that lives may have
  // lost its connections for this moment only.
  const pause = (delay_ms: number) => new Promise<void>((over) => void clock.after(delay_ms, over));
  const none = await haveNoSession(store, strangers);
  await pause(none ? WATCH_KILLED_MS : WATCH_MS);
  if (none && !(await haveNoSession(store, strangers))) await pause(WATCH_MS - WATCH_KILLED_MS);
  const after = await othersOf(store, id);
  const still = strangers.filter((row) => after.has(row.id));
  for (const row of still) {
    if (row.bumps !== after.get(row.id)!.bumps) throw new Error(secondReplica(row, bus));
  }
  return still.map((row) => row.id);
}

async function haveNoSession(store: ReplicaStore, rows: readonly ReplicaRow[]): Promise<boolean> {
  const connected = await store.openSessions();
  return connected !== null && rows.every(({ id, named }) => named && !connected.has(id));
}

async function othersOf(store: ReplicaStore, id: string): Promise<Map<string, ReplicaRow>> {
  const rows = await store.listReplicas();
  return new Map(rows.filter((row) => row.id !== id).map((row) => [row.id, row]));
}

function secondReplica(other: ReplicaRow, bus: boolean): string {
  const missing =
    !bus && other.bus
      ? 'It has NATS_URL set, and this one has not: set the same one here'
      : 'Replicas tell each other what they do over NATS: set the same NATS_URL for all of them';
  return (
    `Another control plane (${other.id}) is running on this database, and the two could not know of each other. ` +
    `${missing}, or stop the other one first; if it was just stopped, start again.`
  );
}
