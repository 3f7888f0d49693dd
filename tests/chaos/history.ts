import { createReadStream, createWriteStream } from 'node:fs';
import { createInterface } from 'node:readline';

/**
 * What everybody saw, one line an event, in the order in which it came to this process: clients, backends and what
 * breaks things live here, so one monotonic clock stamps all of it. Only ever added to; judged by `check.ts`.
 */
export type Event = { at_ms: number } & Seen;

export type Seen =
  /** Jobs that a client has sent, by the numbers that they carry. */
  | { type: 'submitted'; to: string; from: number; count: number }
  /** 202, and under which id each number was taken. */
  | { type: 'acknowledged'; by: string; jobs: [number: number, id: string][] }
  /** One job as a replica shows it, asked for at `asked_ms`; `said` is what its result says. */
  | { type: 'read'; by: string; asked_ms: number; id: string; state: string; said: string | null }
  /** The states of a page of jobs, as a replica lists them. */
  | { type: 'listed'; by: string; asked_ms: number; jobs: [id: string, state: string][] }
  /** A client has asked for it to be cancelled; `done`: it was told that it is. */
  | { type: 'cancel'; id: string; done: boolean }
  /** A backend has been asked, and how that ended: `said` is the answer that it sent whole, null: it was cut off. */
  | { type: 'began'; run: number; node: string; work: Work; number: number }
  | { type: 'ended'; run: number; said: string | null }
  /** What a waiting client got. `end`: the connection ended well, broke, or never came to be (status 0). */
  | {
      type: 'answered';
      by: string;
      work: 'stream' | 'whole';
      number: number;
      status: number;
      text: string;
      end: AnswerEnd;
    }
  | { type: 'fault'; number: number; name: string; target: string; for_ms: number }
  | { type: 'healed'; number: number; name: string; target: string }
  /** It could not be: why. */
  | { type: 'unhealed'; number: number; error: string }
  /** A process of the product has ended; `killed`: by a fault. */
  | { type: 'exited'; who: string; killed: boolean; code: number | null; output: string }
  /** Nothing is broken any more. */
  | { type: 'calm' }
  /** So many jobs are still open; told when there are fewer than before. None: all is settled. */
  | { type: 'open'; jobs: number }
  /** What a replica says of itself and of the nodes, at the end. */
  | { type: 'view'; by: string; ready: string; nodes: [name: string, state: string][] }
  /** A detached job as the store has it at the end. */
  | {
      type: 'stored';
      id: string;
      number: number;
      state: string;
      error: string | null;
      said: string | null;
      succeeded: number;
      usages: number;
    }
  /** How many usage rows with this outcome the store has of a waiting client's request. */
  | { type: 'recorded'; work: 'stream' | 'whole'; number: number; succeeded: number };

export type Work = 'job' | 'stream' | 'whole';
export type AnswerEnd = 'closed' | 'broken' | 'none';

export interface History {
  readonly path: string;
  add(seen: Seen): void;
  /** Everything so far is in the file. */
  flush(): Promise<void>;
}

export function openHistory(path: string): History {
  const file = createWriteStream(path, { flags: 'ax' });
  return {
    path,
    add: (seen) => void file.write(`${JSON.stringify({ at_ms: Math.round(performance.now()), ...seen })}\n`),
    flush: () => new Promise((resolve) => void file.write('', () => resolve())),
  };
}

export async function readHistory(path: string): Promise<Event[]> {
  const events: Event[] = [];
  for await (const line of createInterface({ input: createReadStream(path) })) {
    events.push(JSON.parse(line) as Event);
  }
  return events;
}
