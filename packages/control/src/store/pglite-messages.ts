import type { Noted } from './pglite-copy.ts';
import type { Param } from './sql.ts';

/** What the main thread and the thread of the embedded store say to each other. */
export interface WorkerOptions {
  data_dir: string;
}

export type Work =
  | { do: 'query'; transaction: number | null; name: string; text: string; params: readonly Param[] }
  | { do: 'begin'; transaction: number }
  | { do: 'end'; transaction: number; commit: boolean }
  /** Ends a copy that was begun: between two transactions, so that it holds whole ones only. */
  | { do: 'copy'; to: string; noted: Noted }
  | { do: 'close' };
export type Request = Work & { id: number };

export interface Failure {
  message: string;
  code?: string;
  /** The engine cannot be asked anything more: this thread has to be replaced. */
  fatal?: true;
}
export type Answer = { id: number; rows: unknown[] } | { id: number; failure: Failure };

/** The first message of the worker: open, or why not. */
export type Opened = { opened: true } | { opened: false; failure: Failure };
