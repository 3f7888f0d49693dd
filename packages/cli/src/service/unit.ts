import { EXIT } from '../failure.ts';

/** What a service manager is told of the daemon. Paths are absolute. */
export interface ServiceUnit {
  name: string;
  node: string;
  launcher: string;
  state_dir: string;
  environment: Record<string, string>;
  /** A stop drains for so long. */
  drain_ms: number;
  /** Started with the machine, as this user; undefined: with the session of whoever installs it. */
  system_user: string | undefined;
}

/** Between SIGTERM's drain and SIGKILL: the farewell. */
const FAREWELL_S = 10;
const RESTART_AFTER_S = 5;

/**
 * Always started again, after 5 s: the daemon itself waits longer and longer where it is the control plane that is away.
 * Not after an end that another start would not change: drained on purpose, wrong settings, revoked.
 */
export function systemdUnit(unit: ServiceUnit): string {
  const { name, state_dir, system_user } = unit;
  const environment = Object.entries(unit.environment).map(
    ([variable, value]) => `Environment=${quoted(`${variable}=${value}`)}`,
  );
  const network =
    system_user === undefined ? [] : ['Wants=network-online.target', 'After=network-online.target'];
  return [
    '[Unit]',
    `Description=Flotilla node (${name})`,
    ...network,
    'StartLimitIntervalSec=0',
    '',
    '[Service]',
    ...(system_user === undefined ? [] : [`User=${system_user}`]),
    ...environment,
    `ExecStart=${commandOf(unit)
      .map((word) => quoted(word).replaceAll('$', '$$$$'))
      .join(' ')}`,
    'ExecReload=/bin/kill -HUP $MAINPID',
    `WorkingDirectory=${state_dir.replaceAll('%', '%%')}`,
    'Restart=always',
    `RestartSec=${RESTART_AFTER_S}`,
    `RestartPreventExitStatus=${EXIT.done} ${EXIT.usage} ${EXIT.unwanted}`,
    `TimeoutStopSec=${stopSeconds(unit)}`,
    '# Only the daemon is told to stop: what it has started for others outlives it, and is found again.',
    'KillMode=process',
    'UMask=0077',
    '',
    '[Install]',
    `WantedBy=${system_user === undefined ? 'default.target' : 'multi-user.target'}`,
    '',
  ].join('\n');
}

/** launchd knows no exit codes but 0: the daemon is asked to end with 0 where it shall not be started again. */
export function launchdPlist(unit: ServiceUnit): string {
  const { name, state_dir, system_user, environment } = unit;
  const log = `${state_dir}/service.log`;
  const entries: [string, string][] = [
    ['Label', text(name)],
    ['ProgramArguments', array([...commandOf(unit), '--final-exit-code', '0'])],
    ...(system_user === undefined ? [] : [['UserName', text(system_user)] as [string, string]]),
    [
      'EnvironmentVariables',
      dictionary(Object.entries(environment).map(([key, value]) => [key, text(value)])),
    ],
    ['WorkingDirectory', text(state_dir)],
    ['RunAtLoad', '<true/>'],
    ['KeepAlive', dictionary([['SuccessfulExit', '<false/>']])],
    ['ThrottleInterval', `<integer>${RESTART_AFTER_S}</integer>`],
    ['ExitTimeOut', `<integer>${stopSeconds(unit)}</integer>`],
    ['Umask', '<integer>63</integer>'],
    ['StandardOutPath', text(log)],
    ['StandardErrorPath', text(log)],
  ];
  return [
    '<?xml version="1.0" encoding="UTF-8"?>',
    '<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">',
    `<plist version="1.0">\n${dictionary(entries)}\n</plist>\n`,
  ].join('\n');
}

function commandOf({ node, launcher, state_dir }: ServiceUnit): string[] {
  return [node, launcher, 'node', 'run', '--state-dir', state_dir];
}

function stopSeconds({ drain_ms }: ServiceUnit): number {
  return Math.ceil(drain_ms / 1000) + FAREWELL_S;
}

/** As systemd reads it: quotes and backslashes escaped, % doubled. */
function quoted(word: string): string {
  return `"${word.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('%', '%%')}"`;
}

function text(value: string): string {
  return `<string>${value.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')}</string>`;
}

function array(values: string[]): string {
  return `<array>\n${values.map(text).join('\n')}\n</array>`;
}

function dictionary(entries: [string, string][]): string {
  return `<dict>\n${entries.map(([key, value]) => `<key>${key}</key>\n${value}`).join('\n')}\n</dict>`;
}
