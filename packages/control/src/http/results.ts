import type { Clock, Store } from '@flotilla/core';
import type { JobView } from '@flotilla/protocol';
import type { ServerResponse } from 'node:http';
import type { BodyMemory } from '../body-memory.ts';
import { isJson } from '../is-json.ts';
import { noMemory } from './bodies.ts';
import { cutStalled } from './stall.ts';

/**
 * Results of detached jobs on their way to who asks for them. Each counts in the budget for bodies from before it is
 * loaded until its answer is over, and who stops taking it is cut: else a few readers could fill the process.
 */
export interface Results {
  /** @throws FlotillaError `unavailable` where there is no room for it now */
  load(id: string, answer: ServerResponse): Promise<Result>;
  /**
   * Whether it can stand inside JSON as it is. A success was found to be JSON before it was kept (collector.ts): to parse
   * megabytes again would hold up everybody else. What else is kept is a backend's refusal: parsed once, not for each reader.
   */
  isJson(job: Pick<JobView, 'id' | 'state'>, result: string): boolean;
}

interface Result {
  result: string | null;
  erase_at: number | null;
}

export interface ResultsDeps {
  store: Pick<Store, 'measureResult' | 'loadResult'>;
  memory: BodyMemory;
  clock: Clock;
  stall_ms: number;
}

/** As text, and as the bytes that go out. */
const COPIES = 2;
const VERDICTS_MOST = 10_000;

export function createResults({ store, memory, clock, stall_ms }: ResultsDeps): Results {
  const verdicts = new Map<string, boolean>();
  return {
    async load(id, answer) {
      const measure = await store.measureResult(id);
      const erase_at = measure?.erase_at ?? null;
      const bytes = COPIES * (measure?.result_bytes ?? 0);
      if (bytes === 0 || answer.destroyed) return { result: null, erase_at };
      if (memory.room(bytes) === 0) throw noMemory();
      memory.take(bytes);
      const watch = cutStalled(answer, clock, stall_ms);
      answer.once('close', () => {
        watch.cancel();
        memory.give(bytes);
      });
      return { result: await store.loadResult(id), erase_at };
    },
    isJson({ id, state }, result) {
      if (state === 'succeeded') return true;
      const known = verdicts.get(id);
      if (known !== undefined) return known;
      const verdict = isJson(result);
      verdicts.set(id, verdict);
      if (verdicts.size > VERDICTS_MOST) verdicts.delete(verdicts.keys().next().value!);
      return verdict;
    },
  };
}
