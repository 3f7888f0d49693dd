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
  token: string;
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
    .requiredOption('--token <fle_…>', 'an enrolment token; - reads it from stdin')
    .option('--name <name>', "this node's name (default: the host's)")
    .option('--label <key=value>', 'for placement; repeat for several', collectLabel)
    .option('--backend <url>', 'a model server to use beside those found; repeat for several', collect)
    .option('--slots <n>', 'requests that a backend takes at once (default: what it tells, else 4)', positive)
    .option('--state-dir <dir>', "this node's own files (FLOTILLA_NODE_STATE_DIR, else ~/.flotilla/node)")
    .option('--detach', 'run the daemon in the background; return when it is connected')
    .option('--insecure', 'allow plain http to another machine')
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
  const { enrol, rememberSettings, statePaths } = await import('@flotilla/daemon');
  const token = flags.token === '-' ? (await text(process.stdin)).trim() : flags.token;
  if (!token.startsWith('fle_')) {
    throw new UsageError(
      'That is no enrolment token: one begins with fle_.',
      'Make one: flotilla tokens create',
    );
  }
  const state_dir = nodeStateDir(flags.stateDir);
  const { label, name, insecure } = flags;
  const enrolment = await enrol({ state_dir, url, token, name, labels: label, insecure });
  // So that `node run`, or a service manager, needs none of the flags again.
  const backends = flags.backend?.map((address) => ({ url: address }));
  await rememberSettings(statePaths(state_dir).config, { backends, slots: flags.slots, labels: label });
  if (flags.json) printJson({ event: 'enrolled', ...enrolment });
  else if (enrolment.fresh) note(`Enrolled at ${enrolment.url} as ${enrolment.name} (${enrolment.node_id}).`);
  else note(`Already enrolled at ${enrolment.url} as ${enrolment.name}; the token was not used.`);
  if (flags.detach) return startDetached(state_dir, enrolment.name, flags.json === true);
  await runNode({ stateDir: state_dir, ...(flags.json && { json: true }) });
}
