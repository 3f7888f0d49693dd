import { DONE } from '../support/scripted-backend.ts';
import { saidIn, streamOf } from './answers.ts';
import type { Event, Seen } from './history.ts';

/** A promise that the history shows broken, by what, for whom. */
export interface Violation {
  promise: Promised;
  what: object;
}

export type Promised =
  /** A job that was acknowledged is in the store, and the store has none of which nobody knows. */
  | 'acknowledged jobs are kept'
  /** A number is one job, with one result that was accepted and one usage row. */
  | 'each job is accepted once'
  | 'each job ends'
  /** And only as it may: as a success, as cancelled by a client, or after three attempts. */
  | 'each job ends for a reason'
  /** All replicas show the same from then on, and what clients were told of it stays true. */
  | 'an end does not change'
  | 'a result is what a backend has sent for that job'
  | 'detached work is never on two nodes'
  | 'a backend never has more than its slots'
  | 'a stream is whole, or says that it is not'
  | 'an answer is whole, or an error'
  | 'no success without its record'
  | 'all heals'
  | 'no process ends by itself';

export interface Bounds {
  /** Of each backend. */
  slots: number;
  /** Once nothing is broken any more, some job ends in each such time until all have. */
  stuck_after_ms: number;
}

/** A backend lives in the process that writes the history, and hears of a closed connection when that has time. */
const HEARD_LATE_MS = 250;
/** A node that was stopped closes what its lease no longer covers when it runs again. */
const STOPPED_MOST_MS = 3000;
const ATTEMPTS_MOST = 3;
const OPEN = new Set(['queued', 'leased', 'running']);

type Of<T extends Seen['type']> = Extract<Event, { type: T }>;
type Run = Of<'began'> & { ended_ms: number; said: string | null };

export function violationsOf(events: readonly Event[], bounds: Bounds): Violation[] {
  const history = index(events);
  return [
    ...acceptances(history),
    ...ends(history, bounds),
    ...changes(history),
    ...results(history),
    ...overlaps(history),
    ...overload(history, bounds),
    ...answers(history),
    ...records(history),
    ...healing(history),
  ];
}

interface Index {
  of: <T extends Seen['type']>(type: T) => Of<T>[];
  /** What backends were asked for, in the order in which it began. */
  runs: Run[];
  runOf: Map<number, Run>;
  ids: Map<string, number>;
  stored: Map<string, Of<'stored'>>;
}

function index(events: readonly Event[]): Index {
  const by_type = Map.groupBy(events, ({ type }) => type);
  const of = <T extends Seen['type']>(type: T) => (by_type.get(type) ?? []) as Of<T>[];
  const runs = of('began').map((began) => ({ ...began, ended_ms: Infinity, said: null as string | null }));
  const runOf = new Map(runs.map((run) => [run.run, run]));
  for (const { run, at_ms, said } of of('ended')) Object.assign(runOf.get(run)!, { ended_ms: at_ms, said });
  const ids = new Map(
    of('acknowledged').flatMap(({ jobs }) => jobs.map(([number, id]) => [id, number] as const)),
  );
  const stored = new Map(of('stored').map((row) => [row.id, row]));
  return { of, runs, runOf, ids, stored };
}

function acceptances({ of, ids, stored }: Index): Violation[] {
  const found: Violation[] = [];
  const id_of = new Map<number, string>();
  for (const [id, number] of ids) {
    const other = id_of.get(number);
    if (other !== undefined)
      found.push({ promise: 'each job is accepted once', what: { number, ids: [other, id] } });
    id_of.set(number, id);
    if (!stored.has(id)) found.push({ promise: 'acknowledged jobs are kept', what: { number, id } });
  }
  for (const row of of('stored')) {
    if (!ids.has(row.id)) found.push({ promise: 'acknowledged jobs are kept', what: { unknown: row } });
    const once = row.state === 'succeeded' ? row.succeeded === 1 : row.succeeded === 0;
    if (!once || row.usages !== 1) found.push({ promise: 'each job is accepted once', what: row });
  }
  return found;
}

function ends({ of, runs, stored }: Index, { stuck_after_ms }: Bounds): Violation[] {
  const found: Violation[] = [];
  let moved_ms = of('calm')[0]?.at_ms ?? -Infinity;
  for (const { at_ms, jobs } of of('open')) {
    if (at_ms - moved_ms > stuck_after_ms)
      found.push({ promise: 'each job ends', what: { none_ended_since_ms: moved_ms, at_ms, open: jobs } });
    moved_ms = at_ms;
  }
  if (of('open').at(-1)?.jobs !== 0)
    found.push({ promise: 'each job ends', what: { open: of('open').at(-1) } });
  const cancelled = new Set(of('cancel').map(({ id }) => id));
  const asked = new Map<number, number>();
  for (const { work, number } of runs) if (work === 'job') asked.set(number, (asked.get(number) ?? 0) + 1);
  for (const row of stored.values()) {
    const { id, number, state, error } = row;
    if (OPEN.has(state)) found.push({ promise: 'each job ends', what: row });
    else if (
      state !== 'succeeded' &&
      !(state === 'cancelled' && cancelled.has(id)) &&
      !(error === 'attempts_exhausted' && (asked.get(number) ?? 0) >= ATTEMPTS_MOST)
    )
      found.push({ promise: 'each job ends for a reason', what: { ...row, asked: asked.get(number) ?? 0 } });
  }
  return found;
}

/** Whoever is asked after an end was seen shows the same one. */
function changes({ of, stored }: Index): Violation[] {
  const found: Violation[] = [];
  const seen = new Map<string, { at_ms: number; by: string; state: string; said?: string | null }>();
  const look = (
    id: string,
    asked_ms: number,
    view: { at_ms: number; by: string; state: string; said?: string | null },
  ) => {
    const end = seen.get(id);
    if (end === undefined) {
      if (!OPEN.has(view.state)) seen.set(id, view);
      return;
    }
    const same =
      end.state === view.state &&
      (end.said === undefined || view.said === undefined || end.said === view.said);
    if (asked_ms >= end.at_ms && !same)
      found.push({ promise: 'an end does not change', what: { id, end, later: view } });
    if (same && end.said === undefined) seen.set(id, view);
  };
  const views = [
    ...of('read').map((event) => ({ event, looks: [[event.id, event.state]] as [string, string][] })),
    ...of('listed').map((event) => ({ event, looks: event.jobs })),
    ...of('cancel')
      .filter(({ done }) => done)
      .map((event) => ({
        event: { ...event, by: 'a cancel', asked_ms: event.at_ms },
        looks: [[event.id, 'cancelled']] as [string, string][],
      })),
  ].toSorted((a, b) => a.event.at_ms - b.event.at_ms);
  for (const { event, looks } of views) {
    const said = event.type === 'read' ? { said: event.said } : {};
    for (const [id, state] of looks)
      look(id, event.asked_ms, { at_ms: event.at_ms, by: event.by, state, ...said });
  }
  for (const { at_ms, id, state, said } of stored.values())
    look(id, at_ms, { at_ms, by: 'the store', state, said });
  return found;
}

function results({ of, ids, runOf, stored }: Index): Violation[] {
  const sent = (number: number, said: string | null) => {
    const run = runOf.get(Number(/ run (\d+)\.$/.exec(said ?? '')?.[1]));
    return run?.work === 'job' && run.number === number && run.said === said;
  };
  const shown = [
    ...of('read').map(({ id, state, said }) => ({ id, state, said, number: ids.get(id)! })),
    ...[...stored.values()].map(({ id, state, said, number }) => ({ id, state, said, number })),
  ];
  return shown
    .filter(({ state, said, number }) => state === 'succeeded' && !sent(number, said))
    .map((what) => ({ promise: 'a result is what a backend has sent for that job', what }));
}

/**
 * Only a node that is stopped (SIGSTOP) may be at what another one was given: it can do nothing about it, and what it says
 * afterwards is refused.
 */
function overlaps({ of, runs }: Index): Violation[] {
  const found: Violation[] = [];
  const stops = stopsOf(of('fault'), of('healed'));
  const jobs = Map.groupBy(
    runs.filter(({ work }) => work === 'job'),
    ({ number }) => number,
  );
  for (const own of jobs.values()) {
    for (const [place, later] of own.entries()) {
      for (const earlier of own.slice(0, place)) {
        if (earlier.ended_ms - later.at_ms <= HEARD_LATE_MS) continue;
        const stopped = (stops.get(earlier.node) ?? []).some(
          ({ from_ms, to_ms }) => from_ms <= later.at_ms && earlier.ended_ms <= to_ms + STOPPED_MOST_MS,
        );
        if (!stopped)
          found.push({ promise: 'detached work is never on two nodes', what: { earlier, later } });
      }
    }
  }
  return found;
}

/** When each node was stopped. */
function stopsOf(
  faults: Of<'fault'>[],
  healed: Of<'healed'>[],
): Map<string, { from_ms: number; to_ms: number }[]> {
  const ends = new Map(healed.map(({ number, at_ms }) => [number, at_ms]));
  const stops = new Map<string, { from_ms: number; to_ms: number }[]>();
  for (const { number, name, target, at_ms } of faults) {
    if (name !== 'SIGSTOP of a node') continue;
    const node = target.replace(' ', '-');
    const stop = { from_ms: at_ms, to_ms: ends.get(number) ?? Infinity };
    stops.set(node, [...(stops.get(node) ?? []), stop]);
  }
  return stops;
}

function overload({ runs }: Index, { slots }: Bounds): Violation[] {
  const found: Violation[] = [];
  for (const [node, own] of Map.groupBy(runs, (run) => run.node)) {
    const turns = own
      .flatMap(({ at_ms, ended_ms }) => [
        { at_ms, more: 1 },
        { at_ms: ended_ms, more: -1 },
      ])
      .toSorted((a, b) => a.at_ms - b.at_ms || a.more - b.more);
    let [busy, since_ms] = [0, 0];
    for (const { at_ms, more } of turns) {
      if (busy > slots && busy + more === slots && at_ms - since_ms > HEARD_LATE_MS)
        found.push({
          promise: 'a backend never has more than its slots',
          what: { node, since_ms, until_ms: at_ms },
        });
      if (busy === slots && more === 1) since_ms = at_ms;
      busy += more;
    }
  }
  return found;
}

function answers({ of, runOf }: Index): Violation[] {
  return of('answered').flatMap((answer): Violation[] => {
    const { work, status } = answer;
    const promise =
      work === 'stream' ? 'a stream is whole, or says that it is not' : 'an answer is whole, or an error';
    const fine =
      status === 0 ||
      (status >= 400
        ? isRefusal(answer)
        : work === 'stream'
          ? isHonestStream(answer, runOf)
          : isAnswer(answer, runOf));
    return fine
      ? []
      : [{ promise, what: { ...answer, text: `${answer.text.slice(0, 200)} … ${answer.text.slice(-400)}` } }];
  });
}

function isRefusal({ status, text, end }: Of<'answered'>): boolean {
  return end === 'broken' || (status >= 429 && errorIn(text) !== undefined);
}

function isHonestStream({ text, number, end }: Of<'answered'>, runOf: Index['runOf']): boolean {
  const said = text.replaceAll(/^:.*\n\n/gm, '');
  const run = Number(/, run (\d+)\./.exec(said)?.[1] ?? 0);
  if (run !== 0 && (runOf.get(run)?.work !== 'stream' || runOf.get(run)?.number !== number)) return false;
  const whole = streamOf(number, run);
  if (said.endsWith(DONE) || said === whole) return said === whole;
  const failed = said.lastIndexOf('data: {"error"');
  if (failed < 0) return end === 'broken' && whole.startsWith(said);
  // What was cut within an event is set apart from the error by an empty line.
  const before = whole.startsWith(said.slice(0, failed)) || whole.startsWith(said.slice(0, failed - 2));
  return before && !said.includes('[DONE]');
}

function isAnswer({ text, number, end }: Of<'answered'>, runOf: Index['runOf']): boolean {
  if (end === 'broken') return true;
  const said = saidIn(JSON.parse(text));
  const run = runOf.get(Number(/, run (\d+)\.$/.exec(said ?? '')?.[1]));
  return run?.work === 'whole' && run.number === number && run.said === said;
}

function errorIn(text: string): string | undefined {
  try {
    return (JSON.parse(text) as { error?: { code?: string } }).error?.code;
  } catch {
    return undefined;
  }
}

function records({ of }: Index): Violation[] {
  const rows = new Map(of('recorded').map(({ work, number, succeeded }) => [`${work} ${number}`, succeeded]));
  const unrecorded = of('answered').filter(
    (answer) => isSuccess(answer) && rows.get(`${answer.work} ${answer.number}`) !== 1,
  );
  const twice = of('recorded').filter(({ succeeded }) => succeeded > 1);
  return [...unrecorded, ...twice].map((what) => ({ promise: 'no success without its record', what }));
}

function isSuccess({ work, status, text, end }: Of<'answered'>): boolean {
  return status === 200 && (work === 'stream' ? text.endsWith(DONE) : end === 'closed');
}

function healing({ of }: Index): Violation[] {
  const found: Violation[] = [];
  const healed = new Set(of('healed').map(({ number }) => number));
  const why = new Map(of('unhealed').map(({ number, error }) => [number, error]));
  for (const fault of of('fault'))
    if (!healed.has(fault.number))
      found.push({ promise: 'all heals', what: { ...fault, error: why.get(fault.number) } });
  for (const what of of('view')) {
    const well = what.ready === 'ready' && what.nodes.every(([, state]) => state === 'online');
    if (!well) found.push({ promise: 'all heals', what });
  }
  if (of('view').length === 0) found.push({ promise: 'all heals', what: { view: 'none' } });
  for (const what of of('exited')) {
    // A replica that the others have buried has to.
    if (!what.killed && !what.output.includes('another one has taken its place'))
      found.push({ promise: 'no process ends by itself', what });
  }
  return found;
}
