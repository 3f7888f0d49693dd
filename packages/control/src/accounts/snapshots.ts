import type { Clock, KeyRecord, Log, Store } from '@flotilla/core';
import { repeat } from '../repeat.ts';

/**
 * Keeps what this replica believes of the configuration (keys, nodes) in step with the store.
 *
 *     idle ──500 ms, or changed()──▶ reading the version row ──moved──▶ reloading ──▶ idle
 *                                              └── same, or the store failed ──▶ idle
 *
 * One reading at a time. While the store fails, the last snapshot stands: requests go on, changes wait.
 */
export interface Snapshots {
  /**
   * Something was changed from here, or somebody hints at it: read now, not in 500 ms.
   * @returns when a reading that began after this call is over, whether or not it succeeded
   */
  changed(): Promise<void>;
  close(): Promise<void>;
}

export interface SnapshotsDeps {
  store: Pick<Store, 'configVersion' | 'loadKeys'>;
  clock: Clock;
  log: Log;
  /** Takes over all keys. */
  keys: (records: readonly KeyRecord[]) => void;
  /** Reads the nodes again; a rejection is tried again. */
  nodes: () => Promise<void>;
}

const POLL_MS = 500;

/** @throws what the store throws, if the first reading fails: without a snapshot there is nobody to serve */
export async function startSnapshots({ store, clock, log, keys, nodes }: SnapshotsDeps): Promise<Snapshots> {
  let version = -1;
  let failing = false;
  let closed = false;
  let running: Promise<void> | null = null;
  let queued: Promise<void> | null = null;

  await reload();
  const polling = repeat(clock, () => POLL_MS, check);
  return { changed: check, close };

  async function reload(): Promise<void> {
    // Read first: what is loaded after it is at least as new.
    const found = await store.configVersion();
    if (found === version) return;
    keys(await store.loadKeys());
    await nodes();
    version = found;
  }

  async function read(): Promise<void> {
    try {
      await reload();
      if (failing) log.info({}, 'The configuration can be read again.');
      failing = false;
    } catch (error) {
      if (!failing)
        log.error({ error }, 'The configuration cannot be read: keys and nodes stay as they were.');
      failing = true;
    }
  }

  function check(): Promise<void> {
    if (closed) return Promise.resolve();
    if (running === null) {
      running = read().finally(() => (running = null));
      return running;
    }
    queued ??= running.then(() => {
      queued = null;
      return check();
    });
    return queued;
  }

  async function close(): Promise<void> {
    closed = true;
    await polling.stop();
    await running;
  }
}
