import { join } from 'node:path';
import { styleText } from 'node:util';
import type { Command } from 'commander';
import { placeOf } from '../backup/place.ts';
import { type ClientFlags, controlUrl, isLoopback, openClient, withClient } from '../client.ts';
import { dataDir, nodeStateDir } from '../data-dir.ts';
import { type Check, type CheckState, looked, textOf } from '../doctor/check.ts';
import { checkDaemon } from '../doctor/daemon.ts';
import { checkHost } from '../doctor/host.ts';
import { checkReach } from '../doctor/reach.ts';
import { checkServing } from '../doctor/serving.ts';
import { checkStore } from '../doctor/store.ts';
import { CommandError, EXIT, UsageError } from '../failure.ts';
import { withExamples } from '../help.ts';
import { print, printJson } from '../terminal/output.ts';
import { harmless, plural } from '../terminal/text.ts';

export function addDoctor(program: Command): void {
  const doctor = program
    .command('doctor')
    .description('check this installation, and what the way to the control plane adds; changes nothing')
    .option('--model <model>', 'ask this one; else one that is in memory')
    .option('--state-dir <dir>', "this node's own files (FLOTILLA_NODE_STATE_DIR, else ~/.flotilla/node)")
    .action(examine);
  withExamples(
    withClient(doctor),
    [
      'flotilla doctor',
      'host, store, control plane, nodes and the daemon here; exit code 1 if one of them fails',
    ],
    [
      'flotilla doctor --url https://fleet.example',
      'from where clients are: TLS, proxies, WebSockets, streaming',
    ],
  );
}

interface DoctorFlags extends ClientFlags {
  model?: string;
  stateDir?: string;
}

async function examine(flags: DoctorFlags): Promise<void> {
  const url = controlUrl(flags);
  const checks: Check[] = [];
  // Of another machine's control plane this one's store and port say nothing.
  if (URL.canParse(url) && isLoopback(url)) {
    const dir = dataDir(flags.dataDir);
    const place = placeOf(flags.dataDir === undefined ? {} : { dataDir: flags.dataDir });
    const embedded = 'data_dir' in place ? dir : undefined;
    checks.push(...(await looked('host', 'host', () => checkHost(embedded, portOf(url)))));
    checks.push(...(await looked('store', 'store', () => checkStore(place))));
  }
  checks.push(...(await looked('control plane', 'reachable', () => checkControl(flags, url))));
  const dir = nodeStateDir(flags.stateDir ?? (flags.dataDir && join(dataDir(flags.dataDir), 'node')));
  checks.push(...(await looked('this node', 'daemon', () => checkDaemon(dir))));

  const failed = checks.filter(({ state }) => state === 'fail').length;
  if (failed > 0) process.exitCode = EXIT.failed;
  if (flags.json) return printJson({ url, ok: failed === 0, checks });
  print(reportOf(checks));
}

function portOf(url: string): number {
  const { port, protocol } = new URL(url);
  return port === '' ? (protocol === 'https:' ? 443 : 80) : Number(port);
}

async function checkControl(flags: DoctorFlags, url: string): Promise<Check[]> {
  let client: Awaited<ReturnType<typeof openClient>>;
  let keyless: Check | undefined;
  try {
    client = await openClient(flags);
  } catch (error) {
    if (error instanceof UsageError) throw error;
    // The way there can be looked at without a key.
    const next = error instanceof CommandError ? { next: error.next ?? '' } : {};
    keyless = { area: 'control plane', name: 'API key', state: 'fail', found: textOf(error), ...next };
    client = await openClient({ ...flags, apiKey: 'none' });
  }
  const { checks, rtt_ms, known } = await checkReach(client, url, keyless);
  if (rtt_ms === null || !known) return checks;
  return [...checks, ...(await looked('nodes', 'nodes', () => checkServing(client, rtt_ms, flags.model)))];
}

const MARK: Record<CheckState, string> = { ok: 'ok  ', warn: 'warn', fail: 'FAIL', skip: '–   ' };
const STYLE = { ok: 'green', warn: 'yellow', fail: 'red', skip: 'dim' } as const;

function reportOf(checks: readonly Check[]): string {
  const lines: string[] = [];
  let area = '';
  for (const check of checks) {
    if (check.area !== area) lines.push(...(area === '' ? [] : ['']), `${check.area}:`);
    area = check.area;
    const mark = process.stdout.isTTY ? styleText(STYLE[check.state], MARK[check.state]) : MARK[check.state];
    lines.push(`  ${mark}  ${harmless(check.name)}: ${harmless(check.found)}`);
    if (check.next !== undefined && check.state !== 'ok') lines.push(`        ${harmless(check.next)}`);
  }
  const count = (state: CheckState) => checks.filter((check) => check.state === state).length;
  lines.push(
    '',
    `${plural(count('fail'), 'failure')}, ${plural(count('warn'), 'warning')}, ${count('ok')} ok`,
  );
  return lines.join('\n');
}
