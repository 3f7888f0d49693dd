import type { Clock, Log, Store } from '@flotilla/core';
import { type Repeating, repeat } from './repeat.ts';

/**
 * This process among the rows of `replicas`. This version runs one replica:
 *
 *     starting ──no other row, or none that moves──▶ alone (its row is bumped each second) ──leave()──▶ gone
 *         │                                          └──its row is gone──▶ buried: it must stop
 *         └──another row is bumped while watched──▶ refused, with the reason
 *
 * Rows that stand still are of processes that died: their open jobs are ended, since their clients' connections died
 * with them. Nobody compares clocks: a row lives if its count moves while this process looks on.
 */
export interface Replica {
  leave(): Promise<void>;
}

type ReplicaStore = Pick<
  Store,
  'engine' | 'enterReplica' | 'bumpReplica' | 'endReplica' | 'listReplicas' | 'endOrphans'
>;
export interface ReplicaDeps {
  store: ReplicaStore;
  clock: Clock;
  log: Log;
  id: string;
  /** The row could not be bumped: whoever needs the store is to know, also where nobody is writing now. */
  failed: () => void;
  /** Another replica has taken this one for dead, ended its requests and serves in its place. */
  buried: () => void;
}

const BUMP_MS = 1000;
/** Longer than two bumps: one may come late. */
const WATCH_MS = 2500;

/** @throws Error if another replica lives on this store */
export async function joinAlone(deps: ReplicaDeps): Promise<Replica> {
  const { store, clock, log, id } = deps;
  // First of all, so that two that start at the same moment see each other, and both refuse.
  await store.enterReplica(id);
  const bumping = keepBumping(deps);
  try {
    const dead = await watchOthers(deps);
    for (const other of dead) await bury(other);
  } catch (error) {
    await leave();
    throw error;
  }
  return { leave };

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
    await store.endReplica(id).catch((error: unknown) => {
      log.warn(
        { error },
        'The row of this replica could not be removed; the next start will take it for dead.',
      );
    });
  }
}

function keepBumping({ store, clock, log, id, failed, buried }: ReplicaDeps): Repeating {
  let failing = false;
  return repeat(
    clock,
    () => BUMP_MS,
    async () => {
      try {
        const there = await store.bumpReplica(id);
        failing = false;
        if (!there) buried();
      } catch (error) {
        if (!failing) log.warn({ error }, 'The row of this replica cannot be written.');
        failing = true;
        failed();
      }
    },
  );
}

/** @returns those that did not move */
async function watchOthers({ store, clock, id }: ReplicaDeps): Promise<string[]> {
  const before = await othersOf(store, id);
  if (before.size === 0) return [];
  // The data directory's lock lets no second process live on an embedded store.
  if (store.engine === 'embedded') return [...before.keys()];
  await new Promise<void>((over) => clock.after(WATCH_MS, over));
  const after = await othersOf(store, id);
  for (const [other, bumps] of after) {
    if (before.get(other) !== bumps) throw new Error(secondReplica(other));
  }
  return [...after.keys()];
}

async function othersOf(store: ReplicaStore, id: string): Promise<Map<string, number>> {
  const rows = await store.listReplicas();
  return new Map(rows.filter((row) => row.id !== id).map((row) => [row.id, row.bumps]));
}

function secondReplica(other: string): string {
  return (
    `Another control plane (${other}) is running on this database. This version runs one replica: two would each hold ` +
    'half of the nodes and know nothing of each other. Stop the other one first; if it was just stopped, start again.'
  );
}
