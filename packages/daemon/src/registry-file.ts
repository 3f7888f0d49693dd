import { writeFileAtomically } from './atomic-file.ts';

/** An agent that runs here, with what it takes to tell its processes from others that got their numbers later. */
interface RegisteredAgent {
  agent_id: string;
  job_id: string;
  attempt: number;
  harness: string;
  session_ref: string | null;
  pgid: number;
  processes: { pid: number; start_time: string; cmdline: string }[];
}

export interface Registry {
  pid: number;
  boot_id: string;
  agents: RegisteredAgent[];
}

/** `registry.json`: written only when an agent starts, exits or is adopted, and once at the start. */
export async function writeRegistry(path: string, registry: Registry, wall_ms: number): Promise<void> {
  const text = JSON.stringify({ ...registry, updated_at: new Date(wall_ms).toISOString() }, null, 2);
  await writeFileAtomically(path, `${text}\n`);
}
