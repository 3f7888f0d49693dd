import { chmodSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { mkdir, open, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock, Log, Timer } from '@flotilla/core';
import type { JournalEntry } from '../threads.ts';
import { decodeEntry, encodeEntry, entryName } from './entry.ts';

/**
 * The node's journal: what this node has of detached work, on disk, so that a result outlives the process that has it.
 * One file an attempt in `<state-dir>/journal/`, from its offer until the control plane has answered its result:
 *
 *     (none) ──begun──▶ begun ──ended──▶ result ──acknowledged, abandoned──▶ (none)
 *        └──────────────────── ended and acknowledged before it was written ────▲
 *
 * Moved by what the link thread says (`keep`, `drop`), written by this thread alone, in groups: what came while the last
 * group was on its way to the disk goes in the next, only its latest state. A result is synced, file and directory; that
 * something was begun is not, since all it saves is the wait for a lease to end. Nobody waits for the disk: a result is
 * sent at once, and a process that dies in between has lost what it would have lost without a journal.
 *
 * What cannot be written is kept and tried again, and meanwhile the link thread takes on no more detached work. How much
 * there may be is its business as well: it holds the same results in memory (attempts.ts).
 */
export interface JournalOptions {
  dir: string;
  clock: Clock;
  log: Log;
  /** Whether what it is given gets onto the disk; said when it changes. */
  on_writable: (writable: boolean) => void;
}

const TEMPORARY = '.tmp';
const UNREADABLE = '.unreadable';
const GROUP_MOST = 64;
const RETRY_MS = 1000;
/** As much as takes a block of the disk. */
const MARK = Buffer.alloc(4096);

export class Journal {
  readonly #options: JournalOptions;
  /** What the disk does not say yet: the entry, or null where it is to be gone. */
  readonly #wanted = new Map<string, JournalEntry | null>();
  readonly #on_disk = new Set<string>();
  #writing: Promise<void> | null = null;
  #writable = true;
  #retry: Timer | null = null;
  #closed = false;

  constructor(options: JournalOptions) {
    this.#options = options;
    try {
      mkdirSync(options.dir, { recursive: true, mode: 0o700 });
      // A copy or a careless `chmod` may have opened it; answers are in there.
      chmodSync(options.dir, 0o700);
    } catch (error) {
      this.#failed(error);
      this.#tryAgain();
    }
  }

  get writable(): boolean {
    return this.#writable;
  }

  /** What an earlier process, or thread, of this node has left. Blocks: called before a link thread is there. */
  entries(): JournalEntry[] {
    const entries: JournalEntry[] = [];
    for (const name of this.#names()) {
      if (this.#wanted.has(name)) continue;
      const entry = this.#read(name);
      if (entry !== undefined) entries.push(entry);
    }
    for (const entry of this.#wanted.values()) if (entry !== null) entries.push(entry);
    return entries;
  }

  keep(entry: JournalEntry): void {
    this.#wanted.set(entryName(entry.offer), entry);
    this.#write();
  }

  drop(attempt: { job: string; attempt: number }): void {
    const name = entryName(attempt);
    this.#wanted.delete(name);
    if (!this.#on_disk.has(name)) return;
    this.#wanted.set(name, null);
    this.#write();
  }

  /** Resolves when all that can be written is. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#retry?.cancel();
    while (this.#writing !== null) await this.#writing;
  }

  /** The node leaves the fleet: nobody will ask for any of it. */
  async destroy(): Promise<void> {
    this.#wanted.clear();
    await this.close();
    await rm(this.#options.dir, { recursive: true, force: true });
  }

  #names(): string[] {
    const { dir } = this.#options;
    try {
      const names = readdirSync(dir);
      for (const name of names)
        if (name.endsWith(TEMPORARY)) rmSync(join(dir, name), { force: true, recursive: true });
      return names.filter((name) => !name.endsWith(TEMPORARY) && !name.endsWith(UNREADABLE));
    } catch (error) {
      this.#failed(error);
      this.#tryAgain();
      return [];
    }
  }

  #read(name: string): JournalEntry | undefined {
    const path = join(this.#options.dir, name);
    let why: string;
    try {
      const entry = decodeEntry(readFileSync(path));
      if (typeof entry !== 'string' && entryName(entry.offer) === name) {
        this.#on_disk.add(name);
        return entry;
      }
      why = typeof entry === 'string' ? entry : 'it is of another attempt than its name says';
      renameSync(path, `${path}${UNREADABLE}`);
    } catch (error) {
      why = (error as Error).message;
    }
    this.#options.log.error(
      { path, why },
      'An entry of the journal cannot be used. It was put aside, ending in .unreadable, and may be removed.',
    );
    return undefined;
  }

  #write(): void {
    // While it cannot be written, the next try takes what has come.
    if (this.#retry !== null && !this.#closed) return;
    this.#writing ??= this.#writeAll().finally(() => {
      this.#writing = null;
      if (!this.#writable) this.#tryAgain();
      else if (this.#wanted.size > 0) this.#write();
    });
  }

  #tryAgain(): void {
    if (this.#closed) return;
    this.#retry ??= this.#options.clock.after(RETRY_MS, () => {
      this.#retry = null;
      this.#write();
    });
  }

  async #writeAll(): Promise<void> {
    do {
      const group = [...this.#wanted].slice(0, GROUP_MOST);
      for (const [name] of group) this.#wanted.delete(name);
      try {
        await this.#writeGroup(group);
        this.#succeeded();
      } catch (error) {
        // What was said of them meanwhile is newer.
        for (const [name, entry] of group) if (!this.#wanted.has(name)) this.#wanted.set(name, entry);
        this.#failed(error);
        return;
      }
    } while (this.#wanted.size > 0);
  }

  async #writeGroup(group: [string, JournalEntry | null][]): Promise<void> {
    const { dir } = this.#options;
    // All that was to be written may have been taken back since it failed.
    if (!this.#writable) await tryDirectory(dir);
    const results = group.map(async ([name, entry]) => {
      const path = join(dir, name);
      if (entry === null) {
        await rm(path, { force: true });
        this.#on_disk.delete(name);
        return;
      }
      // From here on: a `drop` while it is being written has to take it away again.
      this.#on_disk.add(name);
      await writeEntry(path, entry);
    });
    const failed = (await Promise.allSettled(results)).find((result) => result.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
    if (group.some(([, entry]) => entry !== null && entry.ended !== null)) await syncDirectory(dir);
  }

  #succeeded(): void {
    if (this.#writable) return;
    this.#writable = true;
    this.#options.log.info({}, 'The journal can be written again; detached work is taken on.');
    this.#options.on_writable(true);
  }

  #failed(error: unknown): void {
    if (!this.#writable) return;
    this.#writable = false;
    this.#options.log.error(
      { dir: this.#options.dir, reason: (error as Error).message },
      'The journal cannot be written: no more detached work is taken on until it can. See that the disk has room and the directory is writable.',
    );
    this.#options.on_writable(false);
  }
}

async function writeEntry(path: string, entry: JournalEntry): Promise<void> {
  const temporary = `${path}${TEMPORARY}`;
  await rm(temporary, { force: true });
  const file = await open(temporary, 'wx', 0o600);
  try {
    for (const part of encodeEntry(entry)) await file.writeFile(part);
    if (entry.ended !== null) await file.datasync();
  } finally {
    await file.close();
  }
  await rename(temporary, path);
}

async function tryDirectory(dir: string): Promise<void> {
  const path = join(dir, `try${TEMPORARY}`);
  await mkdir(dir, { recursive: true, mode: 0o700 });
  await writeFile(path, MARK, { mode: 0o600 });
  await rm(path, { force: true });
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}
