import type { Clock, Log } from '@flotilla/core';

/**
 * Writes the latest row of each id: whatever was put while a write was in flight goes in the next one. Bounded by the
 * number of ids. A failed write is tried again after a second, unless a newer row has replaced it.
 *
 *     idle ──put──▶ writing ──done, nothing waits──▶ idle
 *                      └──failed──▶ waiting 1 s ──▶ writing
 */
export interface LatestWriter<T extends { id: string }> {
  put(row: T): void;
  /** Resolves when nothing waits any more, or a write has failed. */
  settled(): Promise<void>;
}

const RETRY_MS = 1000;

export function latestWriter<T extends { id: string }>(
  write: (rows: T[]) => Promise<void>,
  clock: Clock,
  log: Log,
  what: string,
): LatestWriter<T> {
  const waiting = new Map<string, T>();
  let writing: Promise<void> | null = null;
  let failed = false;

  return {
    put(row) {
      waiting.set(row.id, row);
      kick();
    },
    async settled() {
      while (writing !== null && !failed) await writing;
    },
  };

  function kick(): void {
    if (writing !== null || failed || waiting.size === 0) return;
    writing = flush().finally(() => {
      writing = null;
      if (!failed) kick();
    });
  }

  async function flush(): Promise<void> {
    const rows = [...waiting.values()];
    waiting.clear();
    try {
      await write(rows);
      failed = false;
    } catch (error) {
      if (!failed)
        log.warn({ err: error, rows: rows.length }, `writing ${what} failed; trying again each second`);
      failed = true;
      for (const row of rows) if (!waiting.has(row.id)) waiting.set(row.id, row);
      clock.after(RETRY_MS, () => {
        failed = false;
        kick();
      });
    }
  }
}
