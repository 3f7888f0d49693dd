import { text } from 'node:stream/consumers';
import type { Command } from 'commander';
import { nodeStateDir } from '../data-dir.ts';
import { CommandError, EXIT, UsageError } from '../failure.ts';
import { withExamples } from '../help.ts';
import { runNode } from '../node/run.ts';
import { addService } from './service.ts';
import { type LocalStatus, statusText } from '../node/status.ts';
import { collect, deadline, port, positive, whole } from '../parse.ts';
import { note, print, printJson } from '../terminal/output.ts';
import { plural } from '../terminal/text.ts';

interface StateFlags {
  stateDir?: string;
  json?: boolean;
}

function withState(command: Command): Command {
  return command
    .option('--state-dir <dir>', "this node's own files (FLOTILLA_NODE_STATE_DIR, else ~/.flotilla/node)")
    .option('--json', 'print JSON, for programs');
}

export function addNode(program: Command): void {
  const node = program
    .command('node')
    .description('the daemon on this machine: run, status, drain, leave, credential, service');

  const run = node
    .command('run')
    .description('run the daemon of a machine that has joined, until it is stopped')
    .option('--backend <url>', 'a model server to use beside those found; repeat for several', collect)
    .option('--slots <n>', 'requests that a backend takes at once', positive)
    .option('--status-port <port>', 'loopback port of its status', port)
    .option(
      '--final-exit-code <n>',
      'exit code when it was revoked, or may not go on for good (default: 3)',
      whole,
    )
    .action(runNode);
  withExamples(
    withState(run),
    ['flotilla node run', 'after `flotilla join`; settings are in <state-dir>/node.yaml'],
    ['flotilla node run --backend http://127.0.0.1:9000', 'with a server at an unusual port'],
  );

  const status = node.command('status').description('what the daemon here is doing').action(showStatus);
  withExamples(withState(status), [
    'flotilla node status',
    'link, backends and load; exit code 1 if it does not run',
  ]);

  const drain = node
    .command('drain')
    .description('take no new work, finish what runs, then end the daemon')
    .option('--deadline <duration>', 'like 30s or 10m (default: its drain_timeout_ms)', deadline)
    .action(drainNode);
  withExamples(withState(drain), ['flotilla node drain --deadline 5m', 'before the machine is switched off']);

  const leave = node
    .command('leave')
    .description("drain, then forget this machine's credential")
    .option('--deadline <duration>', 'like 30s or 10m (default: its drain_timeout_ms)', deadline)
    .action(leaveFleet);
  withExamples(withState(leave), ['flotilla node leave', 'to come back, it needs a new token']);

  const credential = node
    .command('credential')
    .description('take up a rotated credential, read from stdin; what runs goes on')
    .action(takeCredential);
  withExamples(withState(credential), [
    'flotilla nodes rotate attic | ssh attic flotilla node credential',
    'from where you administer to the machine itself',
  ]);

  addService(node);
}

async function showStatus(flags: StateFlags): Promise<void> {
  const { callDaemon } = await import('@flotilla/daemon/local');
  const status = await callDaemon(nodeStateDir(flags.stateDir), { verb: 'status' });
  if (flags.json) return printJson(status);
  print(statusText(status as unknown as LocalStatus));
}

interface DeadlineFlags extends StateFlags {
  deadline?: number;
}

/** Longer than any deadline that the daemon accepts: it answers when its work has ended. */
const UNTIL_ENDED_MS = 25 * 3_600_000;

async function drainNode(flags: DeadlineFlags): Promise<void> {
  const { callDaemon } = await import('@flotilla/daemon/local');
  const dir = nodeStateDir(flags.stateDir);
  const status = (await callDaemon(dir, { verb: 'status' })) as unknown as LocalStatus;
  const deadline = flags.deadline === undefined ? {} : { deadline_ms: flags.deadline };
  if (!flags.json) note(`${status.name} drains; ${plural(status.attempts.length, 'request')} at work.`);
  const answer = await callDaemon(dir, { verb: 'drain', wait: true, ...deadline }, UNTIL_ENDED_MS);
  if (flags.json) {
    printJson(answer);
    if (answer['drained'] !== true) process.exitCode = EXIT.failed;
    return;
  }
  if (answer['drained'] !== true) {
    throw new CommandError(
      `It ended before all of its work did: ${cut(answer) ?? 'its link ended unexpectedly, see its log.'}`,
    );
  }
  note(`${status.name} is drained and has ended.`);
}

/** What the daemon's answer says of requests that its deadline cut. */
function cut(answer: Record<string, unknown>): string | undefined {
  const released = Number(answer['released'] ?? 0);
  if (released === 0) return undefined;
  return `${plural(released, 'request')} ${released === 1 ? 'was' : 'were'} cut.`;
}

async function leaveFleet(flags: DeadlineFlags): Promise<void> {
  const { callDaemon, DaemonCallError, forgetEnrolment } = await import('@flotilla/daemon/local');
  const dir = nodeStateDir(flags.stateDir);
  const deadline = flags.deadline === undefined ? {} : { deadline_ms: flags.deadline };
  try {
    const answer = await callDaemon(dir, { verb: 'leave', ...deadline }, UNTIL_ENDED_MS);
    if (flags.json) return printJson(answer);
    note('This machine has left; its credential is removed.');
    const what = cut(answer);
    if (what !== undefined) note(`It left before all of its work had ended: ${what}`);
    return;
  } catch (error) {
    if (!(error instanceof DaemonCallError) || error.code !== 'not_running') throw error;
  }
  const forgotten = await forgetEnrolment(dir);
  if (forgotten === null) throw notJoined(dir);
  if (flags.json) return printJson({ left: true, deregistered: false, ...forgotten });
  note(
    `${forgotten.name} has left ${forgotten.url}; its credential is removed. No daemon ran, so the control plane`,
  );
  note(`shows it as offline until it is deleted there: flotilla nodes delete ${forgotten.name}`);
}

/** From stdin: an argument would stay in the shell's history and in the list of processes. */
async function takeCredential(flags: StateFlags): Promise<void> {
  const { callDaemon, DaemonCallError, isNodeCredential, replaceCredential } = await import(
    '@flotilla/daemon/local'
  );
  if (process.stdin.isTTY) note('Paste the new credential, then Enter and Ctrl-D.');
  const credential = (await text(process.stdin)).trim();
  if (!isNodeCredential(credential)) {
    throw new UsageError(
      'What came on stdin is no credential of a node: one begins with fln_.',
      'Hand one over: flotilla nodes rotate NAME | ssh HOST flotilla node credential',
    );
  }
  const dir = nodeStateDir(flags.stateDir);
  try {
    const answer = await callDaemon(dir, { verb: 'credential', credential });
    if (flags.json) return printJson(answer);
    return note(`${String(answer['name'])} has its new credential; its link is made anew with it.`);
  } catch (error) {
    if (!(error instanceof DaemonCallError) || error.code !== 'not_running') throw error;
  }
  const enrolled = await replaceCredential(dir, credential);
  if (enrolled === null) throw notJoined(dir);
  if (flags.json) return printJson({ ok: true, name: enrolled.name, in_use: false });
  note(`${enrolled.name} has its new credential. No daemon runs here; the next one starts with it.`);
}

function notJoined(dir: string): CommandError {
  return new CommandError(`This machine has not joined any fleet (nothing in ${dir}).`);
}
