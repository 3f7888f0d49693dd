import type { Clock, KnownDescriptor, Log, MovedNode, Store } from '@flotilla/core';
import { repeat } from '../repeat.ts';
import type { FleetNode } from './node.ts';
import type { Roster } from './roster.ts';

/**
 * Nodes that are linked to other replicas, known here by what those write of them:
 *
 *     idle ──500 ms, a hint──▶ reading what moved since ──▶ told to the connections ──▶ idle
 *
 * Where only this replica is, nothing reads.
 */
export interface Mirror {
  /** Resolves when what was written before this call is known here. @returns false where the store did not say */
  look(): Promise<boolean>;
  close(): Promise<void>;
}

export interface MirrorDeps {
  clock: Clock;
  log: Log;
  store: Pick<Store, 'movedNodes'>;
  roster: Roster;
  known: KnownDescriptor;
  /** Whether this replica has a row; looks again where it is not known. */
  lives(replica: string): Promise<boolean>;
  /** Reads the nodes anew: one is not known yet. */
  refresh(): Promise<void>;
  elsewhere(node: FleetNode, moved: MovedNode): void;
  /** A connection that is no more has this epoch of the node. */
  overtaken(node: FleetNode, epoch: number): void;
}

const LOOK_EVERY_MS = 500;

/** @throws what the store throws at the first look */
export async function startMirror(deps: MirrorDeps): Promise<Mirror> {
  const { clock, log, store, roster } = deps;
  let fleet = 0;
  let failing = false;
  let running: Promise<boolean> | null = null;
  let queued: Promise<boolean> | null = null;
  await read();
  const looking = repeat(clock, () => LOOK_EVERY_MS, look);
  return {
    look,
    async close() {
      await looking.stop();
      await running;
    },
  };

  /** One at a time, and one more for all who ask meanwhile. */
  function look(): Promise<boolean> {
    if (running === null) {
      running = tryToRead().finally(() => (running = null));
      return running;
    }
    queued ??= running.then(() => {
      queued = null;
      return look();
    });
    return queued;
  }

  async function tryToRead(): Promise<boolean> {
    try {
      await read();
      failing = false;
      return true;
    } catch (error) {
      if (!failing) log.warn({ error }, 'What other replicas write of their nodes cannot be read.');
      failing = true;
      return false;
    }
  }

  async function read(): Promise<void> {
    const moved = await store.movedNodes(fleet, deps.known);
    if (moved.nodes.some(({ id }) => roster.find(id) === undefined)) await deps.refresh();
    for (const row of moved.nodes) {
      const node = roster.find(row.id);
      if (node === undefined || row.replica === null) continue;
      // Of a replica that is no more, the row says what was; who comes back registers anew.
      if (await deps.lives(row.replica)) deps.elsewhere(node, row);
      else deps.overtaken(node, row.epoch);
    }
    fleet = moved.fleet;
  }
}
