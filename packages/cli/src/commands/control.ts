import type { Command } from 'commander';
import { withExamples, withNote } from '../help.ts';
import { port } from '../parse.ts';
import { stopSignal } from '../process-end.ts';
import { keepRunningWithoutReader, note } from '../terminal/output.ts';

interface ControlFlags {
  port?: number;
  host?: string;
  publicUrl?: string;
  dataDir?: string;
}

export function addControl(program: Command): void {
  const control = program
    .command('control')
    .description('run one control plane replica for production, configured by environment')
    .option('--port <port>', 'for API and node links; 0 takes a free one (FLOTILLA_PORT, else 7400)', port)
    .option('--host <address>', 'where it listens (FLOTILLA_HOST, else 127.0.0.1)')
    .option('--public-url <url>', 'the address that others reach it by (FLOTILLA_PUBLIC_URL)')
    .option(
      '--data-dir <dir>',
      'the embedded store, without DATABASE_URL (FLOTILLA_DATA_DIR, else ~/.flotilla)',
    )
    .action(runReplica);
  withExamples(
    control,
    [
      'DATABASE_URL=postgres://… FLOTILLA_ADMIN_KEY=… flotilla control --host 0.0.0.0',
      'on PostgreSQL; the admin key (32 characters or more) is the first key there is',
    ],
    ['flotilla up', 'the same with everything made for you, to begin with'],
  );
  withNote(control, 'All other settings are variables: docs/reference/settings.md lists them.');
}

async function runReplica(flags: ControlFlags): Promise<void> {
  keepRunningWithoutReader();
  const { readControlConfig, runControl } = await import('@flotilla/control');
  const config = readControlConfig(process.env, {
    port: flags.port,
    host: flags.host,
    public_url: flags.publicUrl,
    data_dir: flags.dataDir,
  });
  const control = await runControl(config);
  const stopped = await Promise.race([stopSignal(), control.closed]);
  if (stopped === undefined) return;
  note('Stopping; answers under way are finished first. Once more ends it at once.');
  await control.close();
}
