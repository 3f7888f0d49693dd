import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { promisify } from 'node:util';
import { CommandError } from '../failure.ts';
import { launchdPlist, type ServiceUnit, systemdUnit } from './unit.ts';

export type ManagerName = 'systemd' | 'launchd';

/** The service manager of this machine, asked through its own command. */
export interface Manager {
  file: string;
  textOf: (unit: ServiceUnit) => string;
  /** Fails where it cannot be asked, before anything is written. */
  check: () => Promise<void>;
  running: () => Promise<boolean>;
  /** The file is new: it is read, and the service (re)started, now and from now on. */
  start: () => Promise<void>;
  /** Stopped, now and from now on; the file may go. */
  stop: () => Promise<void>;
  /** The file has gone. */
  forget: () => Promise<void>;
}

const run = promisify(execFile);

export function managerOf(name: ManagerName, service: string, system: boolean): Manager {
  return name === 'systemd' ? systemd(service, system) : launchd(service, system);
}

function systemd(service: string, system: boolean): Manager {
  const folder = system
    ? '/etc/systemd/system'
    : join(process.env['XDG_CONFIG_HOME'] || join(homedir(), '.config'), 'systemd/user');
  const systemctl = (...args: string[]) => ask('systemctl', [...(system ? [] : ['--user']), ...args]);
  const unit = `${service}.service`;
  return {
    file: join(folder, unit),
    textOf: systemdUnit,
    check: () => systemctl('daemon-reload'),
    running: () => succeeds(systemctl('is-active', '--quiet', unit)),
    async start() {
      await systemctl('daemon-reload');
      await systemctl('enable', unit);
      await systemctl('restart', unit);
    },
    stop: () => systemctl('disable', '--now', unit),
    forget: () => systemctl('daemon-reload'),
  };
}

function launchd(service: string, system: boolean): Manager {
  const file = join(
    system ? '/Library/LaunchDaemons' : join(homedir(), 'Library/LaunchAgents'),
    `${service}.plist`,
  );
  const domain = system ? 'system' : `gui/${process.getuid?.() ?? 0}`;
  const place = `${domain}/${service}`;
  const check = () => ask('launchctl', ['print', domain]);
  const running = () => succeeds(ask('launchctl', ['print', place]));
  return {
    file,
    textOf: launchdPlist,
    check,
    running,
    async start() {
      await out();
      await ask('launchctl', ['bootstrap', domain, file]);
    },
    async stop() {
      await check();
      await out();
    },
    forget: () => Promise.resolve(),
  };

  /** `bootout` may end, with 36 or 0, while the daemon still drains; what is started before it has gone is refused. */
  async function out(): Promise<void> {
    await succeeds(ask('launchctl', ['bootout', place]));
    const most_ms = stopMs(await readFile(file, 'utf8').catch(() => ''));
    const since_ms = performance.now();
    while (await running()) {
      if (performance.now() - since_ms > most_ms) {
        throw new CommandError(
          `${place} still runs ${Math.round(most_ms / 1000)} s after it was told to stop.`,
          `See what it does, then ask again: launchctl print ${place}`,
        );
      }
      await pause(LOOK_EVERY_MS);
    }
  }
}

const LOOK_EVERY_MS = 200;
/** launchd kills what outstays its stop time; a kill takes a moment, too. */
const KILLED_WITHIN_MS = 10_000;
const STOP_DEFAULT_S = 60;

function stopMs(plist: string): number {
  const [, seconds] = /<key>ExitTimeOut<\/key>\s*<integer>(\d+)</.exec(plist) ?? [];
  return Number(seconds ?? STOP_DEFAULT_S) * 1000 + KILLED_WITHIN_MS;
}

async function ask(command: string, args: string[]): Promise<void> {
  try {
    await run(command, args);
  } catch (cause) {
    const { stderr, message } = cause as Error & { stderr?: string };
    throw new CommandError(
      `\`${command} ${args.join(' ')}\` failed: ${(stderr || message).trim()}`,
      'With --output DIR the file is only written, and nothing is asked to start it.',
      { cause },
    );
  }
}

async function succeeds(asked: Promise<void>): Promise<boolean> {
  return asked.then(
    () => true,
    () => false,
  );
}
