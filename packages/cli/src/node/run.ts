import type { ConfigFlags } from '@flotilla/daemon';
import { nodeStateDir } from '../data-dir.ts';
import { EXIT } from '../failure.ts';
import { parentGone } from '../process-end.ts';
import { keepRunningWithoutReader, printJson } from '../terminal/output.ts';

export interface RunFlags {
  stateDir?: string;
  backend?: string[];
  slots?: number;
  statusPort?: number;
  finalExitCode?: number;
  json?: boolean;
}

/** Where `flotilla up` tells its node of the simulated backend, beside the backends that it has anyway. */
export const SIMULATED_BACKEND = 'FLOTILLA_UP_SIMULATED_BACKEND';

/** Runs the daemon in this process until it has stopped, and sets the exit code. */
export async function runNode(flags: RunFlags): Promise<void> {
  keepRunningWithoutReader();
  const { runDaemon } = await import('@flotilla/daemon');
  const orphaned = new AbortController();
  // The control plane has ended with the parent: there is nobody left to finish work for.
  void parentGone().then(() => orphaned.abort());
  let refused: Error | undefined;
  const code = await runDaemon({
    state_dir: nodeStateDir(flags.stateDir),
    flags: await settingsOf(flags),
    kill: orphaned.signal,
    on_refused: (reason) => (refused = reason),
    on_event: (event) => {
      process.send?.(event);
      if (flags.json) printJson(event);
    },
  });
  if (refused !== undefined) throw refused;
  process.exitCode = code === EXIT.unwanted ? (flags.finalExitCode ?? code) : code;
}

async function settingsOf(flags: RunFlags): Promise<ConfigFlags> {
  const given = {
    backends: flags.backend?.map((url) => ({ url })),
    slots: flags.slots,
    status_port: flags.statusPort,
  };
  const simulated = process.env[SIMULATED_BACKEND];
  if (simulated === undefined) return given;
  const { loadConfig } = await import('@flotilla/daemon');
  const { statePaths } = await import('@flotilla/daemon/local');
  const { config } = statePaths(nodeStateDir(flags.stateDir));
  const { backends } = await loadConfig(config, { environment: process.env, flags: given });
  return { ...given, backends: [...backends, { id: 'simulated', kind: 'openai', url: simulated }] };
}
