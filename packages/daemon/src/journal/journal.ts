import {
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { type FileHandle, mkdir, open, rename, rm, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock, Log, Timer } from '@flotilla/core';
import type { JournalHealth } from '@flotilla/protocol';
import type { JournalEntry } from '../threads.ts';
import { decodeEntry, encodeEntry, entryName } from './entry.ts';
import { faultText } from './fault.ts';

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
 * What cannot be written is kept and tried again, and meanwhile the link thread takes on no more detached work:
 *
 *     healthy ──a write fails, at the start or later──▶ down ──a try, after 1, 2, 4 … 60 s, writes all of a group──▶ healthy
 *
 * A journal that is healthy is looked at by nobody. How much there may be is the link thread's business as well: it
 * holds the same results in memory (attempts.ts).
 */
export interface JournalOptions {
  dir: string;
  /** Whose results these are: those of another node, of this fleet or another, are not delivered as its own. */
  node: string;
  clock: Clock;
  log: Log;
  /** Whether what it is given gets onto the disk, and what is in the way; said when it changes. */
  on_health: (health: JournalHealth) => void;
}

const TEMPORARY = '.tmp';
const UNREADABLE = '.unreadable';
const FOREIGN = '.foreign';
/** What was put aside holds answers in clear, and nobody may come to look at it. */
const ASIDE_KEPT_MS = 24 * 3_600_000;
const GROUP_MOST = 64;
const RETRY_FIRST_MS = 1000;
const RETRY_MOST_MS = 60_000;
const TRY = `try${TEMPORARY}`;
/** As much as takes a block of the disk. */
const MARK = Buffer.alloc(4096);

export class Journal {
  readonly #options: JournalOptions;
  /** What the disk does not say yet: the entry, or null where it is to be gone. */
  readonly #wanted = new Map<string, JournalEntry | null>();
  readonly #on_disk = new Set<string>();
  #writing: Promise<void> | null = null;
  /** What is in the way; null: nothing. */
  #fault: string | null = null;
  #retry: Timer | null = null;
  #retry_ms = RETRY_FIRST_MS;
  #closed = false;

  constructor(options: JournalOptions) {
    this.#options = options;
    try {
      mkdirSync(options.dir, { recursive: true, mode: 0o700 });
      // A copy or a careless `chmod` may have opened it; answers are in there.
      chmodSync(options.dir, 0o700);
      // Now, and not with the first job that it is given.
      const path = join(options.dir, TRY);
      writeFileSync(path, MARK, { mode: 0o600 });
      rmSync(path);
    } catch (error) {
      this.#failed(error);
      this.#tryAgain();
    }
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
      return names.filter((name) => {
        if (name.endsWith(TEMPORARY)) this.#sweep(name, 0);
        else if (name.endsWith(UNREADABLE) || name.endsWith(FOREIGN)) this.#sweep(name, ASIDE_KEPT_MS);
        else return true;
        return false;
      });
    } catch (error) {
      this.#failed(error);
      this.#tryAgain();
      return [];
    }
  }

  /** What is none to be delivered, and of that age. Where it has to stay, what is whole is delivered all the same. */
  #sweep(name: string, age_ms: number): void {
    const { dir, clock } = this.#options;
    const path = join(dir, name);
    try {
      if (age_ms > 0 && clock.wall_ms() - statSync(path).mtimeMs < age_ms) return;
      rmSync(path, { force: true, recursive: true });
    } catch (error) {
      this.#failed(error);
      this.#tryAgain();
    }
  }

  #read(name: string): JournalEntry | undefined {
    const { dir, node, clock, log } = this.#options;
    const path = join(dir, name);
    let why = '';
    let aside = UNREADABLE;
    try {
      const read = decodeEntry(readFileSync(path));
      if (typeof read === 'string') why = read;
      else if (entryName(read.entry.offer) !== name) why = 'it is of another attempt than its name says';
      else if (read.node !== undefined && read.node !== node) {
        why = `it is of ${read.node}, and this node is ${node}`;
        aside = FOREIGN;
      } else {
        this.#on_disk.add(name);
        return read.entry;
      }
      // From now on it is kept for a day, however old it is.
      const now_s = clock.wall_ms() / 1000;
      utimesSync(path, now_s, now_s);
      renameSync(path, `${path}${aside}`);
      log.error(
        { path, why },
        `An entry of the journal cannot be used. It was put aside, ending in ${aside}; a start after a day removes it.`,
      );
    } catch (error) {
      log.error(
        { path, why, error },
        'An entry of the journal cannot be used, nor be put aside: it stays, and has to be removed by hand.',
      );
    }
    return undefined;
  }

  #write(): void {
    // While it cannot be written, the next try takes what has come.
    if (this.#retry !== null && !this.#closed) return;
    this.#writing ??= this.#writeAll().finally(() => {
      this.#writing = null;
      if (this.#fault !== null) this.#tryAgain();
      else if (this.#wanted.size > 0) this.#write();
    });
  }

  #tryAgain(): void {
    if (this.#closed || this.#retry !== null) return;
    this.#retry = this.#options.clock.after(this.#retry_ms, () => {
      this.#retry = null;
      this.#write();
    });
    this.#retry_ms = Math.min(2 * this.#retry_ms, RETRY_MOST_MS);
  }

  async #writeAll(): Promise<void> {
    do {
      // What is to be gone first: on a full disk that is what makes room.
      const wanted = [...this.#wanted].sort(([, a], [, b]) => Number(a !== null) - Number(b !== null));
      const gone = wanted.filter(([, entry]) => entry === null).length;
      const group = wanted.slice(0, Math.max(GROUP_MOST, gone));
      for (const [name, entry] of group) {
        this.#wanted.delete(name);
        // From here on: a `drop` while it is being written has to take it away again.
        if (entry !== null) this.#on_disk.add(name);
      }
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
    const { dir, node } = this.#options;
    await all(
      group.map(async ([name, entry]) => {
        if (entry !== null) return;
        await remove(join(dir, name));
        this.#on_disk.delete(name);
      }),
    );
    // All that was to be written may have been taken back since it failed.
    if (this.#fault !== null) await tryDirectory(dir);
    await all(
      group.map(async ([name, entry]) => {
        if (entry === null) return;
        await writeEntry(join(dir, name), encodeEntry(entry, node), entry.ended !== null);
      }),
    );
    if (group.some(([, entry]) => entry !== null && entry.ended !== null)) await syncDirectory(dir);
  }

  #succeeded(): void {
    if (this.#fault === null) return;
    this.#fault = null;
    this.#retry_ms = RETRY_FIRST_MS;
    this.#options.log.info({}, 'The journal can be written again; detached work is taken on.');
    this.#options.on_health({ health: 'healthy' });
  }

  #failed(error: unknown): void {
    const fault = faultText(error);
    if (this.#fault === fault) return;
    this.#fault = fault;
    const { dir, log, on_health } = this.#options;
    log.error(
      { dir, reason: (error as Error).message },
      `No more detached work is taken on until it can be written down: ${fault}. It is tried again by itself.`,
    );
    on_health({ health: 'down', reason: fault });
  }
}

/** As `Promise.all`, but over only when each of them is. */
async function all(parts: Promise<void>[]): Promise<void> {
  const failed = (await Promise.allSettled(parts)).find((result) => result.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
}

async function writeEntry(path: string, parts: Uint8Array[], synced: boolean): Promise<void> {
  const temporary = `${path}${TEMPORARY}`;
  try {
    const file = await openNew(temporary);
    try {
      for (const part of parts) await file.writeFile(part);
      if (synced) await file.datasync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    // Half of it helps nobody, and takes what room there is.
    await rm(temporary, { force: true }).catch(() => undefined);
    throw error;
  }
}

/** What a crash has left under the name is taken away, not written over: it may be a link to elsewhere. */
async function openNew(path: string): Promise<FileHandle> {
  try {
    return await open(path, 'wx', 0o600);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    await rm(path, { force: true });
    return open(path, 'wx', 0o600);
  }
}

/** `rm` looks first what it is, at the price of the removal itself. */
async function remove(path: string): Promise<void> {
  await unlink(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error;
  });
}

async function tryDirectory(dir: string): Promise<void> {
  const path = join(dir, TRY);
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
