import type { KeyRecord } from '@flotilla/core';
import { isTerminal } from '@flotilla/protocol';
import type { Call } from './backend.ts';
import type { Attached, Submitted } from './client.ts';
import type { Serving } from './replica.ts';
import type { Database } from './store/database.ts';
import type { Transition } from './store/tables.ts';

/**
 * What holds at every moment of every run, whatever goes wrong. Each is a function of what there is to see: rows and
 * committed transitions, what clients have, what model servers are at work on, the ledgers of control planes. It gives a
 * sentence where its promise is broken.
 */
export type Verdict = string | undefined;

export interface Violation {
  invariant: Invariant;
  sentence: string;
}

export const INVARIANTS = {
  P1: 'A job acknowledged with 202 is committed, and stays so; asked for again, it is the same one.',
  P2: 'No success reaches a client before its record is committed.',
  P3: 'A job has at most one accepted result, and it is that of the attempt that counts.',
  P4: 'Detached work is not given to a second node before the first has stopped it.',
  P6: 'An answer is that of one attempt, byte for byte, and ends as a success only when it is whole.',
  limits: 'What a key may at once, and in a minute, holds over all control planes together.',
  slots: 'A slot has one holder: what is reserved is held, never beyond what there is.',
  liveness: 'No node is called offline before its lease has ended.',
  ends: 'Every job ends, and leaves nothing behind.',
  sound: 'No process meets a fault of its own.',
} as const;

export type Invariant = keyof typeof INVARIANTS;

/** P1, of what was acknowledged. */
export function committed(database: Database, { request_id, jobs }: Submitted): Verdict {
  if (jobs.size > 1) return `${request_id} was acknowledged as ${[...jobs].join(' and ')}.`;
  const missing = [...jobs].find((job) => database.job(job) === undefined);
  return missing && `${missing} was acknowledged, and the store does not have it.`;
}

/** P2, of what a client has now. Whole answers of less than a stream are successes with their last byte. */
export function recorded(database: Database, client: Attached): Verdict {
  const success = client.stream
    ? client.received.includes('data: [DONE]')
    : client.end === 'whole' && client.status === 200;
  if (!success) return undefined;
  for (const row of database.jobs()) {
    if (row.request_id !== client.request_id) continue;
    const usage = database.usageOf(row.id);
    if (row.state === 'succeeded' && usage?.outcome === 'succeeded' && usage.node !== null) return undefined;
    return `${client.request_id} has a success, and its row says ${row.state}.`;
  }
  return `${client.request_id} has a success, and there is no row of it.`;
}

/** P3, of one transition. A row that a replica ended in the name of one that it took for dead may be set right once. */
export function endsOnce(before: Transition | undefined, moved: Transition, of_orphan: boolean): Verdict {
  if (before === undefined || !isTerminal(before.to) || of_orphan) return undefined;
  return `${moved.job} ended as ${before.to}, and then went to ${moved.to}.`;
}

/** P3, of a success. */
export function ofItsAttempt(database: Database, moved: Transition, calls: readonly Call[]): Verdict {
  const result = database.tables.bodies.get(moved.job)?.result ?? null;
  const row = database.job(moved.job)!;
  const own = calls.filter(({ request_id }) => request_id === row.request_id);
  const answered = own.find(({ answers }) => result !== null && answers.includes(result));
  if (answered === undefined) return `${moved.job} succeeded with what no model server has answered.`;
  if (answered.attempt === row.attempt && answered.node === row.node) return undefined;
  return (
    `${moved.job} succeeded by its attempt ${row.attempt} on ${row.node}, and has the answer to attempt ` +
    `${answered.attempt} on ${answered.node}.`
  );
}

/** P4: nobody else is at work on it when somebody is given it, or begins. */
export function alone(job: string, to: string, others_at_work: readonly Call[]): Verdict {
  const [other] = others_at_work;
  return (
    other && `${job} was given to ${to} while ${other.machine} was at work on attempt ${other.attempt} of it.`
  );
}

function ofOneCall({ request_id, received, end }: Attached, calls: readonly Call[]): Verdict {
  const own = calls.filter((call) => call.request_id === request_id);
  if (end !== 'whole' || own.some(({ answers }) => answers.includes(received))) return undefined;
  return `${request_id} has an answer that no model server gave: ${received.slice(0, 200)}`;
}

const COMMENTS = /^(?:: [^\n]*\n\n)*/;

/** P6, of what a client has now. */
export function ofOneAnswer(client: Attached, calls: readonly Call[]): Verdict {
  if (client.status !== 200) return undefined;
  if (!client.stream) return ofOneCall(client, calls);
  const told = client.received.replace(COMMENTS, '');
  const error = told.indexOf('\n\ndata: {"error"');
  const bytes = error < 0 ? told : told.slice(0, error);
  const answers = calls.flatMap((call) => (call.request_id === client.request_id ? call.answers : []));
  if (bytes !== '' && !answers.some((answer) => answer.startsWith(bytes))) {
    // An error of ours comes by itself where nothing was said before it.
    if (/^(?:\n\n)?data: \{"error"/.test(told)) return undefined;
    return `${client.request_id} has bytes that are no beginning of one answer: ${JSON.stringify(bytes.slice(-200))}`;
  }
  // A backend that takes its time over the empty line behind its [DONE] is not waited for.
  const whole = answers.some((answer) => answer.trimEnd() === bytes.trimEnd());
  const done = told.includes('data: [DONE]');
  if (done && error >= 0) return `${client.request_id} has a [DONE], and an error behind it.`;
  if (done && !whole && client.end !== null) return `${client.request_id} has a [DONE] and not the whole.`;
  if (client.end === 'whole' && !whole && error < 0 && !told.startsWith('data: {"error"')) {
    return `${client.request_id} ended without its [DONE], and no error tells so.`;
  }
  return undefined;
}

/** What the clients' key may. */
export type KeyLimits = Pick<KeyRecord, 'requests_per_minute' | 'concurrency'>;

/**
 * Of attached requests that were let in. What a control plane has that was taken for dead, and lives, is nobody's place any more.
 * @param asked all that have ever reached a model server @param passed_ms since the first could
 */
export function withinLimits(
  { requests_per_minute, concurrency }: KeyLimits,
  asked: ReadonlySet<string>,
  passed_ms: number,
  open: readonly Attached[],
): Verdict {
  if (concurrency !== null && open.length > concurrency) {
    return `${open.map(({ request_id }) => request_id).join()} are served at once; the key may ${concurrency}.`;
  }
  // A bucket with a minute's worth in it, filled again as time passes.
  const most = (requests_per_minute ?? Infinity) * (1 + passed_ms / 60_000);
  if (asked.size <= most) return undefined;
  return `${asked.size} requests were let in within ${passed_ms.toFixed(0)} ms; the key may ${requests_per_minute} in a minute.`;
}

/** The ledgers of one control plane. */
export function slotsHeld({ roster }: Pick<Serving, 'roster'>): Verdict {
  for (const { ledger, record } of roster.all()) {
    let held = 0;
    for (const pool of ledger.pools.values()) {
      held += pool.held.size;
      if (pool.held.size > pool.capacity)
        return `${record.name} has ${pool.held.size} of ${pool.capacity} slots taken.`;
      if (pool.promised < 0) return `${record.name} has ${pool.promised} slots promised.`;
    }
    if (held !== ledger.holders.size)
      return `${record.name} has ${held} slots taken and ${ledger.holders.size} holders.`;
  }
  return undefined;
}

/** Of a node's machine: a model server is asked no more at once than it has slots. */
export function withinSlots(node: string, slots: number, at_work: ReadonlySet<Call>): Verdict {
  if (at_work.size <= slots) return undefined;
  return `The backend of ${node} works on ${at_work.size} requests, and has ${slots} slots.`;
}

/** @param silent_ms by the clock of the control plane that says so, since it has heard of the node */
export function leaseOver(node: string, silent_ms: number, lease_ttl_ms: number): Verdict {
  if (silent_ms >= lease_ttl_ms) return undefined;
  return `${node} is called offline ${silent_ms.toFixed(1)} ms after it was heard of; its lease is ${lease_ttl_ms} ms.`;
}
