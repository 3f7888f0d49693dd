import { readFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';

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
