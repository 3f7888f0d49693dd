import { operationSchema, type Operation } from '@flotilla/protocol';
import { z } from 'zod';

/** What makes a node able to serve a job, as one text: jobs with the same one form a lane of the store. */
export interface DetachedLane {
  readonly model: string;
  readonly operation: Operation;
  readonly labels: Readonly<Record<string, string>>;
  readonly pin: string | null;
  /** Nodes and providers that failed its jobs lately, the last one last: jobs of a lane are served by the same ones. */
  readonly avoid: readonly string[];
}

/** With the attempts that a job has, the third one meets a third node where there is one. */
const AVOIDED_MOST = 2;

const fresh = [
  z.string(),
  operationSchema,
  z.array(z.tuple([z.string(), z.string()])),
  z.string().nullable(),
] as const;
const laneSchema = z.union([
  z.tuple([...fresh, z.array(z.string())]),
  z.tuple([...fresh]).transform((lane) => [...lane, []] as const),
]);

export function laneText({ model, operation, labels, pin, avoid }: DetachedLane): string {
  const wanted = Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1));
  return JSON.stringify([model, operation, wanted, pin, ...(avoid.length > 0 ? [avoid] : [])]);
}

/** The lane of a job of this one once the node has failed it. */
export function laneAfter(text: string, node: string): string {
  const lane = readLane(text);
  if (lane === undefined) return text;
  const others = lane.avoid.filter((other) => other !== node);
  return laneText({ ...lane, avoid: [...others, node].slice(-AVOIDED_MOST) });
}

let last: { text: string; lane: DetachedLane | undefined } = { text: '', lane: undefined };

/** Undefined: a lane that a later version made; its jobs are for replicas of that version. */
export function readLane(text: string): DetachedLane | undefined {
  // Jobs that are claimed together are mostly of one lane.
  if (last.text !== text) last = { text, lane: parseLane(text) };
  return last.lane;
}

function parseLane(text: string): DetachedLane | undefined {
  try {
    const [model, operation, labels, pin, avoid] = laneSchema.parse(JSON.parse(text));
    return { model, operation, labels: Object.fromEntries(labels), pin, avoid };
  } catch {
    return undefined;
  }
}
