import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, rename, rm, stat, writeFile } from 'node:fs/promises';
import { userInfo } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { type Command, Option } from 'commander';
import { nodeStateDir } from '../data-dir.ts';
import { CommandError, EXIT, UsageError } from '../failure.ts';
import { withExamples } from '../help.ts';
import { LAUNCHER } from '../self.ts';
import { type Manager, type ManagerName, managerOf } from '../service/manager.ts';
import type { ServiceUnit } from '../service/unit.ts';
import { note, print, printJson } from '../terminal/output.ts';

interface ServiceFlags {
  stateDir?: string;
  name: string;
  system?: boolean;
  manager?: ManagerName;
  dryRun?: boolean;
  output?: string;
  json?: boolean;
}

/** What the daemon finds its way out by; everything else is in node.yaml. */
const CARRIED = ['HTTPS_PROXY', 'https_proxy', 'NO_PROXY', 'no_proxy', 'NODE_EXTRA_CA_CERTS'];

export function addService(node: Command): void {
  const service = node
    .command('service')
    .description("keep the daemon running, by this machine's service manager (systemd, launchd)");
  service.helpCommand(false);

  const install = service
    .command('install')
    .description(
      'start the daemon with the machine (as root) or with your session, and again whenever it ends',
    )
    .option('--state-dir <dir>', "this node's own files (FLOTILLA_NODE_STATE_DIR, else ~/.flotilla/node)")
    .option('--dry-run', 'print the unit, change nothing')
    .option('--output <dir>', 'write the unit into this folder, start nothing')
    .action(install_);
  withExamples(
    withService(install),
    [
      'flotilla node service install',
      'after `flotilla join`; ends with your session, without loginctl enable-linger',
    ],
    [
      'sudo flotilla node service install --state-dir ~/.flotilla/node',
      'with the machine, as the owner of those files',
    ],
    ['flotilla node service install --dry-run', 'the unit, to look at'],
  );

  const uninstall = service
    .command('uninstall')
    .description('stop the service and remove it; the machine stays a node')
    .action(uninstall_);
  withExamples(withService(uninstall), ['flotilla node service uninstall', 'what runs is finished first']);

  const status = service.command('status').description('whether it is installed and runs').action(status_);
  withExamples(withService(status), ['flotilla node service status', 'exit code 1 if it does not run']);
}

function withService(command: Command): Command {
  return command
    .option('--name <name>', 'for several nodes on one machine', 'flotilla-node')
    .option('--system', 'with the machine, not with your session (default for root)')
    .option('--no-system', 'with your session, also as root')
    .addOption(new Option('--manager <name>', "default: this system's").choices(['systemd', 'launchd']))
    .option('--json', 'print JSON, for programs');
}

async function install_(flags: ServiceFlags): Promise<void> {
  const state_dir = nodeStateDir(flags.stateDir);
  const manager = managerFor(flags);
  const text = manager.textOf(await unitOf(flags, state_dir));
  if (flags.dryRun) return print(text.trimEnd());
  const to = flags.output === undefined ? manager.file : join(resolve(flags.output), basename(manager.file));
  if (flags.output === undefined) await mayStart(manager, state_dir);
  await writeUnit(to, text);
  if (flags.output === undefined) await manager.start();
  const started = flags.output === undefined;
  if (flags.json) return printJson({ installed: to, started, state_dir });
  note(started ? `Installed as ${to}, and started.` : `Written to ${to}; nothing was started.`);
  if (started) note(`See how it does: flotilla node status --state-dir ${state_dir}`);
}

async function uninstall_(flags: ServiceFlags): Promise<void> {
  const manager = managerFor(flags);
  if (!existsSync(manager.file)) throw notInstalled(manager);
  await manager.stop();
  await rm(manager.file);
  await manager.forget();
  if (flags.json) return printJson({ uninstalled: manager.file });
  note(
    `Stopped, and ${manager.file} is removed. This machine is still a node; to end that: flotilla node leave`,
  );
}

async function status_(flags: ServiceFlags): Promise<void> {
  const manager = managerFor(flags);
  const installed = existsSync(manager.file);
  const running = installed && (await manager.running());
  if (!running) process.exitCode = EXIT.failed;
  if (flags.json) return printJson({ file: manager.file, installed, running });
  if (!installed) throw notInstalled(manager);
  print(`${manager.file}: ${running ? 'runs' : 'does not run'}`);
}

function notInstalled({ file }: Manager): CommandError {
  return new CommandError(
    `There is no such service: ${file} is not there.`,
    'Make it: flotilla node service install',
  );
}

function managerFor({ manager, name, system }: ServiceFlags): Manager {
  if (!/^[A-Za-z0-9][\w.-]{0,63}$/.test(name)) {
    throw new UsageError(
      `${JSON.stringify(name)} is no name for a service: letters, digits, dot, dash, 64 at most.`,
    );
  }
  const own =
    process.platform === 'linux' ? 'systemd' : process.platform === 'darwin' ? 'launchd' : undefined;
  const chosen = manager ?? own;
  if (chosen === undefined) {
    throw new CommandError(
      `There is no service manager that is known on ${process.platform}.`,
      'Let your own run: flotilla node run',
    );
  }
  return managerOf(chosen, name, system ?? process.getuid?.() === 0);
}

async function unitOf(flags: ServiceFlags, state_dir: string): Promise<ServiceUnit> {
  const { loadConfig } = await import('@flotilla/daemon');
  const { readCredential, statePaths } = await import('@flotilla/daemon/local');
  const paths = statePaths(state_dir);
  if ((await readCredential(paths)) === null) {
    throw new CommandError(
      `This machine has not joined any fleet (nothing in ${state_dir}).`,
      'First: flotilla join URL --token fle_… --detach, then flotilla node drain. Files of another user: --state-dir.',
    );
  }
  const system = flags.system ?? process.getuid?.() === 0;
  const { drain_timeout_ms } = await loadConfig(paths.config, { environment: process.env });
  return {
    name: flags.name,
    node: process.execPath,
    launcher: LAUNCHER,
    state_dir: plain(state_dir),
    environment: carried(),
    drain_ms: drain_timeout_ms,
    system_user: system ? await ownerOf(paths.credential) : undefined,
  };
}

/** A unit can be read by everybody on the machine. */
function carried(): Record<string, string> {
  const found = CARRIED.flatMap((name) => {
    const value = process.env[name];
    if (!value) return [];
    if (URL.canParse(value) && new URL(value).password !== '') {
      throw new UsageError(
        `${name} holds a password, and a unit can be read by everybody here.`,
        'Install without it (unset it for this command), and give the service the proxy by a file of its own.',
      );
    }
    return [[name, plain(value)] as const];
  });
  return Object.fromEntries(found);
}

/** A line break would be another line of the unit. */
function plain(value: string): string {
  // eslint-disable-next-line no-control-regex
  if (/[\u0000-\u001F\u007F]/.test(value))
    throw new UsageError(`${JSON.stringify(value)} has a control character.`);
  return value;
}

/** Whose files they are, by name: launchd takes no number. */
async function ownerOf(path: string): Promise<string> {
  const { uid } = await stat(path);
  const own = userInfo();
  if (uid === own.uid) return own.username;
  try {
    const { stdout } = await promisify(execFile)('id', ['-un', String(uid)]);
    return plain(stdout.trim());
  } catch (cause) {
    throw new CommandError(
      `${path} belongs to user ${uid}, who has no name on this machine: a service cannot run as them.`,
      `Give the files to a user that there is: chown -R NAME ${dirname(path)}`,
      { cause },
    );
  }
}

async function mayStart(manager: Manager, state_dir: string): Promise<void> {
  await manager.check();
  const { callDaemon, DaemonCallError } = await import('@flotilla/daemon/local');
  if (await manager.running()) return;
  const pid = await callDaemon(state_dir, { verb: 'status' }).then(
    (status) => Number(status['pid']),
    (error: unknown) => {
      if (error instanceof DaemonCallError && error.code !== 'forbidden') return undefined;
      throw error;
    },
  );
  if (pid === undefined) return;
  throw new CommandError(
    `A daemon that is no service already runs here (process ${pid}).`,
    `Let it finish first: flotilla node drain --state-dir ${state_dir}`,
  );
}

async function writeUnit(path: string, text: string): Promise<void> {
  try {
    await mkdir(dirname(path), { recursive: true });
    await writeFile(`${path}.tmp`, text, { mode: 0o644 });
    await rename(`${path}.tmp`, path);
  } catch (cause) {
    throw new CommandError(
      `${path} cannot be written: ${(cause as Error).message}`,
      'A service of the machine is installed by root; one of your session, without --system, by you.',
      { cause },
    );
  }
}
