import { text } from 'node:stream/consumers';
import type { Command } from 'commander';
import { nodeStateDir } from '../data-dir.ts';
import { UsageError } from '../failure.ts';
import { withExamples } from '../help.ts';
import { startDetached } from '../node/detached.ts';
import { runNode } from '../node/run.ts';
import { collect, collectLabel, positive } from '../parse.ts';
import { note, printJson } from '../terminal/output.ts';

interface JoinFlags {
  token?: string;
  name?: string;
  label?: Record<string, string>;
  backend?: string[];
  slots?: number;
  stateDir?: string;
  detach?: boolean;
  insecure?: boolean;
  json?: boolean;
}

export function addJoin(program: Command): void {
  const join = program
    .command('join <url>')
    .description('join a fleet: enrol this machine once, then run its daemon')
    .option('--token <fle_…>', 'an enrolment token (`flotilla tokens create`); - reads it from stdin')
    .option('--name <name>', "this node's name (default: the host's)")
    .option('--label <key=value>', 'for placement; repeat for several', collectLabel)
    .option('--backend <url>', 'a model server to use beside those found; repeat for several', collect)
    .option('--slots <n>', 'requests that a backend takes at once (default: what it tells, else 4)', positive)
    .option('--state-dir <dir>', "this node's own files (FLOTILLA_NODE_STATE_DIR, else ~/.flotilla/node)")
    .option('--detach', 'run the daemon in the background; return when it is connected')
    .option('--insecure', 'allow plain http to another machine: who is on the way can read all of it')
    .option('--json', 'print JSON, for programs')
    .action(joinFleet);
  withExamples(
    join,
    ['flotilla join https://fleet.example --token fle_…', 'with the model servers found on this machine'],
    [
      'flotilla join https://fleet.example --token - --detach < token',
      'in the background, the token not in `ps`',
    ],
    [
      'flotilla join URL --token fle_… --backend http://127.0.0.1:9000 --slots 8',
      'a server at an unusual port',
    ],
  );
}

async function joinFleet(url: string, flags: JoinFlags): Promise<void> {
  const { enrol, loadConfig } = await import('@flotilla/daemon');
  const { statePaths } = await import('@flotilla/daemon/local');
  const token = flags.token === '-' ? (await text(process.stdin)).trim() : flags.token;
  if (token?.startsWith('fle_') !== true) {
    throw new UsageError(
      token === undefined
        ? 'A machine joins with an enrolment token: --token fle_…'
        : 'That is no enrolment token: one begins with fle_.',
      'Make one where the control plane is: flotilla tokens create',
    );
  }
  const state_dir = nodeStateDir(flags.stateDir);
  const { label: labels, name, insecure, slots } = flags;
  // Kept, so that `node run`, or a service manager, needs none of the flags again.
  const settings = { backends: flags.backend?.map((address) => ({ url: address })), slots, labels };
  // A token is not spent on a daemon that could not start.
  await loadConfig(statePaths(state_dir).config, { environment: process.env, flags: settings });
  const enrolment = await enrol({ state_dir, url, token, name, labels, settings, insecure });
  if (flags.json) printJson({ event: 'enrolled', ...enrolment });
  else if (enrolment.fresh) note(`Enrolled at ${enrolment.url} as ${enrolment.name} (${enrolment.node_id}).`);
  else {
    note(`Already enrolled at ${enrolment.url} as ${enrolment.name}; the token was not used.`);
    note('If it was deleted there, or shall go elsewhere, first: flotilla node leave');
  }
  if (flags.detach) return startDetached(state_dir, enrolment.name, flags.json === true);
  await runNode({ stateDir: state_dir, ...(flags.json && { json: true }) });
}
