import { availableParallelism, freemem, loadavg, totalmem } from 'node:os';

/** What a beat says of the machine; a few numbers that cost next to nothing. */
export function hostFacts(): Record<string, number> {
  return {
    cpus: availableParallelism(),
    load_1m: Math.round(loadavg()[0]! * 100) / 100,
    memory_total_bytes: totalmem(),
    memory_free_bytes: freemem(),
  };
}
