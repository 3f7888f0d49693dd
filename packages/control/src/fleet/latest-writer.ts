import type { Clock, Log, Timer } from '@flotilla/core';

/**
 * Writes the latest row of each id: whatever was put while a write was in flight goes in the next one. Bounded by the
 * number of ids. A failed write is tried again after a second, unless a newer row has replaced it.
 *
 *     idle ──put──▶ writing ──done, nothing waits──▶ idle
 *                      └──failed──▶ waiting 1 s ──▶ writing
 *     any ──close──▶ writing what waits, once ──done or failed──▶ closed
 *
 * What is not written by then is lost: it says how things stood, which the next start finds out anew.
 */
export interface LatestWriter<T extends { id: string }> {
  put(row: T): void;
  /** Resolves when what waits is written, or could not be; a store that is away keeps no process from ending. */
  close(): Promise<void>;
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
  let retry: Timer | null = null;
  let failing = false;
  let closed = false;

  return {
    put(row) {
      if (closed) return;
      waiting.set(row.id, row);
      kick();
    },
    async close() {
      closed = true;
      stopWaiting();
      kick();
      while (writing !== null) await writing;
    },
  };

  function kick(): void {
    if (writing !== null || retry !== null || waiting.size === 0) return;
    writing = flush().then((done) => {
      writing = null;
      if (done) kick();
      else if (!closed) retry = clock.after(RETRY_MS, again);
    });
  }

  function again(): void {
    stopWaiting();
    kick();
  }

  function stopWaiting(): void {
    retry?.cancel();
    retry = null;
  }

  async function flush(): Promise<boolean> {
    const rows = [...waiting.values()];
    waiting.clear();
    try {
      await write(rows);
      failing = false;
      return true;
    } catch (error) {
      if (!failing)
        log.warn({ err: error, rows: rows.length }, `writing ${what} failed; trying again each second`);
      failing = true;
      for (const row of rows) if (!waiting.has(row.id)) waiting.set(row.id, row);
      return false;
    }
  }
}
