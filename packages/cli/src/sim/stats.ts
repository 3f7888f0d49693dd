import type { FaultName } from './fault.ts';

/** What is remembered of one request. No prompt, no answer. */
export interface RequestRecord {
  id: string;
  operation: string;
  model: string;
  streaming: boolean;
  /** The `x-request-id` it came with. */
  request_id: string | null;
  fault: FaultName | null;
  /** `aborted`: the client left before the answer was whole. */
  outcome: 'served' | 'refused' | 'faulted' | 'aborted' | null;
  status: number | null;
  started_at: string;
  ended_at: string | null;
  /** Waited for a slot. */
  waited_ms: number;
  first_byte_ms: number | null;
  total_ms: number | null;
}

const RECORDS_MAX = 1000;

/** Counters since the start (or the last reset) and the newest requests. */
export class Stats {
  #requests = 0;
  #in_flight = 0;
  #max_in_flight = 0;
  #model_lists = 0;
  #by_operation = new Map<string, number>();
  #outcomes = { served: 0, refused: 0, faulted: 0, aborted: 0 };
  #records: RequestRecord[] = [];

  count(operation: string): void {
    this.#requests += 1;
    this.#by_operation.set(operation, (this.#by_operation.get(operation) ?? 0) + 1);
  }

  countModelList(): void {
    this.#model_lists += 1;
  }

  begin(record: RequestRecord): void {
    this.count(record.operation);
    this.#records.push(record);
    if (this.#records.length > RECORDS_MAX) this.#records.shift();
  }

  /** A request holds a slot from now on. */
  enter(): void {
    this.#in_flight += 1;
    this.#max_in_flight = Math.max(this.#max_in_flight, this.#in_flight);
  }

  leave(): void {
    this.#in_flight -= 1;
  }

  end(outcome: keyof Stats['outcomes']): void {
    this.#outcomes[outcome] += 1;
  }

  get outcomes(): Readonly<{ served: number; refused: number; faulted: number; aborted: number }> {
    return this.#outcomes;
  }

  /** Work in flight goes on and is still counted as such. */
  reset(): void {
    this.#requests = 0;
    this.#max_in_flight = this.#in_flight;
    this.#model_lists = 0;
    this.#by_operation.clear();
    this.#outcomes = { served: 0, refused: 0, faulted: 0, aborted: 0 };
    this.#records = [];
  }

  view(waiting: number): object {
    return {
      simulated: true,
      requests: this.#requests,
      in_flight: this.#in_flight,
      max_in_flight: this.#max_in_flight,
      waiting,
      ...this.#outcomes,
      model_lists: this.#model_lists,
      by_operation: Object.fromEntries(this.#by_operation),
      timings: this.#records,
    };
  }
}
