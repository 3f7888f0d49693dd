import { readFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import { median } from './histogram.ts';

/** What a figure was measured on: `2 × Some Processor, 24 GiB, Node 24.21.0`. */
export function hardware(): string {
  const [first] = cpus();
  const memory = Math.round(totalmem() / 2 ** 30);
  return `${cpus().length} × ${first!.model.trim()}, ${memory} GiB, Node ${process.versions.node}`;
}

/** Above this share of the processors others make a difference that a report has to tell. */
export const BUSY = 0.1;

/**
 * What others have of the processors, over a moment in which the bench does nothing. The load average would not do, for it
 * still remembers the scenario before.
 */
export async function othersAtWork(over_ms = 1000): Promise<number> {
  const before = ticks();
  await new Promise((over) => setTimeout(over, over_ms));
  const after = ticks();
  return 1 - (after.idle - before.idle) / Math.max(1, after.all - before.all);
}

function ticks(): { idle: number; all: number } {
  let idle = 0;
  let all = 0;
  for (const { times } of cpus()) {
    idle += times.idle;
    all += times.idle + times.user + times.nice + times.sys + times.irq;
  }
  return { idle, all };
}

/** More than a core keeps to itself, less than the processor's cores share. */
const SHARED_CACHE_BYTES = 4 * 2 ** 20;
const READS = 500_000;

/**
 * What one read takes that has to leave the core, in ns: the median of five. On a shared host others push our data out of the
 * caches, which no count of the processors' time shows, and a program is slower the more code and data it has.
 */
export function memoryLatency(): number {
  const next = new Int32Array(SHARED_CACHE_BYTES / Int32Array.BYTES_PER_ELEMENT).map((_, at) => at);
  // One cycle through all of it, in an order that no processor foresees (Sattolo).
  for (let last = next.length - 1; last > 0; last--) {
    const other = Math.floor(Math.random() * last);
    [next[last], next[other]] = [next[other]!, next[last]!];
  }
  let at = 0;
  const times = Array.from({ length: 5 }, () => {
    const began_ms = performance.now();
    for (let read = 0; read < READS; read++) at = next[at]!;
    return ((performance.now() - began_ms) * 1e6) / READS;
  });
  // Nobody needs where it ends; but what nobody asks for need not be read.
  return at < 0 ? NaN : median(times);
}

export interface ProcessUse {
  /** Processor time of all its threads, in seconds (Linux counts hundredths). */
  cpu_s: number;
  /** Resident memory, in MiB. */
  memory_mib: number;
}

/** @returns null where the system does not say (anything but Linux) or the process is gone */
export function processUse(pid: number): ProcessUse | null {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
    const resident = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
    return {
      cpu_s: (Number(fields[11]) + Number(fields[12])) / 100,
      memory_mib: Number(resident) / 1024,
    };
  } catch {
    return null;
  }
}
