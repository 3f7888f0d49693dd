import { PRIORITY_STEP_MS, type PlacementRequest } from '@flotilla/core';
import { readLane } from './lane.ts';

/**
 * Lanes of the store that are known to hold a job ready to be claimed. Hints only: what one says too much costs an
 * empty look-up, what one says too little is found by the slow poll.
 *
 *     unknown ──accepted or requeued here, readied, polled──▶ known ──a claim got less than it asked for──▶ unknown
 */
export interface ReadyLane {
  readonly text: string;
  readonly placement: PlacementRequest;
  /** Not larger than the smallest that waits, as far as is known. */
  order_key: number;
  /** Of the job that has it. */
  priority: number;
  /**
   * Where claims begin to read: the jobs before it were claimed, as far as is known. Infinity while a claim that asks from
   * there on is under way, except where something was heard of meanwhile.
   */
  from_order_key: number;
  /** How many wait, as far as is known. */
  jobs: number;
  /** Slots that have been reserved for it and are not yet asked for. */
  planned: number;
  /** Rises with each hint, so that a claim under way cannot forget what came after it. */
  hints: number;
}

/** More lanes than this at once are served by the slow poll alone. */
const LANES_MOST = 10_000;

export class ReadyLanes {
  readonly #lanes = new Map<string, ReadyLane>();
  readonly #by_model = new Map<string, Set<ReadyLane>>();
  readonly #noted: (lane: string, order_key: number, priority: number) => void;

  /** @param noted a job became ready here: others may want to know */
  constructor(noted: (lane: string, order_key: number, priority: number) => void = () => undefined) {
    this.#noted = noted;
  }

  /** So many more jobs are ready. */
  note(text: string, order_key: number, priority: number, jobs = 1): void {
    if (Number.isFinite(jobs)) this.#noted(text, order_key, priority);
    const known = this.#lanes.get(text);
    if (known !== undefined) {
      known.from_order_key = Math.min(known.from_order_key, order_key);
      if (order_key < known.order_key) Object.assign(known, { order_key, priority });
      known.jobs += jobs;
      known.hints++;
      return;
    }
    if (this.#lanes.size >= LANES_MOST) return;
    const lane = readLane(text);
    if (lane === undefined) return;
    const { model, operation, labels, pin, avoid } = lane;
    const placement: PlacementRequest = {
      model,
      operation,
      labels,
      pin,
      avoid: new Set(avoid),
      refused_by: NOBODY,
      affinity: null,
      fenced: true,
    };
    const made: ReadyLane = {
      text,
      placement,
      order_key,
      priority,
      from_order_key: order_key,
      jobs,
      planned: 0,
      hints: 0,
    };
    this.#lanes.set(text, made);
    const same = this.#by_model.get(model) ?? new Set();
    this.#by_model.set(model, same.add(made));
  }

  /** Somebody looked: there is at least one, and perhaps very many. */
  found(text: string, order_key: number, priority: number): void {
    this.note(text, order_key, priority, Infinity);
  }

  /** Attached work asks with every slot that becomes free. */
  get none(): boolean {
    return this.#lanes.size === 0;
  }

  ofModel(model: string): Iterable<ReadyLane> {
    return this.#by_model.get(model) ?? [];
  }

  /** Of all that wait for the model, the order key of the one that goes first, without its priority. */
  headOf(model: string): number | undefined {
    let first: number | undefined;
    for (const { order_key, priority } of this.ofModel(model)) {
      const at = order_key + Math.round(priority * PRIORITY_STEP_MS);
      if (first === undefined || at < first) first = at;
    }
    return first;
  }

  /** Those with jobs that no slot is reserved for, the first to be served first. */
  wanting(): ReadyLane[] {
    return [...this.#lanes.values()].filter(wants).sort((a, b) => a.order_key - b.order_key);
  }

  forget(lane: ReadyLane): void {
    const { text, placement } = lane;
    if (this.#lanes.get(text) !== lane) return;
    this.#lanes.delete(text);
    const same = this.#by_model.get(placement.model);
    same?.delete(lane);
    if (same?.size === 0) this.#by_model.delete(placement.model);
  }
}

const NOBODY: ReadonlySet<string> = new Set();

export function wants(lane: ReadyLane): boolean {
  return lane.jobs > lane.planned;
}
