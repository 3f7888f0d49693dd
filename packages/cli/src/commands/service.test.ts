import { execFile } from 'node:child_process';
import { chmod, chown, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, onTestFinished, test } from 'vitest';
import { run } from '../testing/command.ts';

/** The service managers themselves are not here: what they are given is, and what systemctl is asked, by a stand-in. */
const shell = promisify(execFile);

async function machine() {
  const dir = await mkdtemp(join(tmpdir(), 'fl-s'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const state = join(dir, 'its $HOME 100%');
  await mkdir(state, { mode: 0o700 });
  const credential = { url: 'http://127.0.0.1:1', node_id: 'node_1', name: 'box', credential: 'fln_secret' };
  await writeFile(
    join(state, 'credential'),
    JSON.stringify({ ...credential, insecure: false, enrolled_at: '' }),
    {
      mode: 0o600,
    },
  );
  await writeFile(join(dir, 'systemctl'), `#!/bin/sh\necho "$*" >> '${dir}/asked'\n[ "$2" != is-active ]\n`);
  await chmod(join(dir, 'systemctl'), 0o755);
  const environment = { PATH: `${dir}:${process.env['PATH']}`, XDG_CONFIG_HOME: dir, HOME: dir };
  const service = (...args: string[]) => run(['node', 'service', ...args], environment);
  const asked = async () => (await readFile(join(dir, 'asked'), 'utf8')).trim().split('\n');
  return { dir, state, service, asked };
}

test('the unit of systemd is one that systemd takes, starts again what fails, and not what was revoked', async () => {
  const { dir, state, service } = await machine();
  const written = await service('install', '--state-dir', state, '--manager', 'systemd', '--output', dir);
  expect(written).toMatchObject({ code: 0, stdout: '' });
  const file = join(dir, 'flotilla-node.service');
  const unit = await readFile(file, 'utf8');
  expect(unit).toContain('"node" "run" "--state-dir" "');
  expect(unit).toContain('its $$HOME 100%%"');
  expect(unit).toMatch(/^Restart=always$/m);
  expect(unit).toMatch(/^RestartPreventExitStatus=0 2 3$/m);
  expect(unit).not.toContain('fln_secret');
  const verify = await shell('systemd-analyze', ['verify', file]).catch(
    (error: unknown) => error as { code: unknown },
  );
  // Where there is no systemd, nobody can say; a unit that it refuses is another code.
  if (!('code' in verify)) expect(verify).toMatchObject({ stderr: '' });
  else expect(verify.code).toBe('ENOENT');
});

test('the plist of launchd starts again what fails; the daemon ends with 0 where it shall not be', async () => {
  const { state, service } = await machine();
  const { code, stdout } = await service(
    'install',
    '--state-dir',
    state,
    '--manager',
    'launchd',
    '--dry-run',
  );
  expect(code).toBe(0);
  expect(stdout).toMatch(/<key>SuccessfulExit<\/key>\s*<false\/>/);
  expect(stdout).toMatch(/<string>--final-exit-code<\/string>\s*<string>0<\/string>/);
});

test.runIf(process.getuid?.() === 0)(
  'root installs for another user by name, where the user has one',
  async () => {
    const { state, service } = await machine();
    const text = async (uid: number, manager: string) => {
      await chown(join(state, 'credential'), uid, uid);
      return service('install', '--state-dir', state, '--manager', manager, '--dry-run');
    };
    const nobody = Number((await shell('id', ['-u', 'nobody'])).stdout);
    expect((await text(nobody, 'launchd')).stdout).toMatch(/<key>UserName<\/key>\s*<string>nobody<\/string>/);
    expect((await text(nobody, 'systemd')).stdout).toMatch(/^User=nobody$/m);
    const unknown = await text(54_321, 'launchd');
    expect(unknown).toMatchObject({ code: 1, stdout: '' });
    expect(unknown.stderr).toContain('belongs to user 54321, who has no name');
  },
);

test('install writes the unit and has it started; uninstall stops it first', async () => {
  const { dir, state, service, asked } = await machine();
  // As a user, whoever runs this test.
  const flags = ['--manager', 'systemd', '--no-system'];
  expect(await service('install', '--state-dir', state, ...flags)).toMatchObject({ code: 0 });
  const file = join(dir, 'systemd/user/flotilla-node.service');
  expect(await readFile(file, 'utf8')).toContain('WantedBy=default.target');
  expect((await asked()).slice(-3)).toEqual([
    '--user daemon-reload',
    '--user enable flotilla-node.service',
    '--user restart flotilla-node.service',
  ]);
  expect(await service('uninstall', ...flags)).toMatchObject({ code: 0 });
  expect((await asked()).slice(-2)).toEqual([
    '--user disable --now flotilla-node.service',
    '--user daemon-reload',
  ]);
  await expect(readFile(file)).rejects.toThrow('ENOENT');
  expect(await service('status', ...flags)).toMatchObject({ code: 1 });
});

test('launchd starts the daemon anew only when the one before has gone, and stops it to the end', async () => {
  const { dir, state, service, asked } = await machine();
  // One that drains for two more looks after `bootout` said "Operation now in progress".
  await writeFile(
    join(dir, 'launchctl'),
    `#!/bin/sh
echo "$*" >> '${dir}/asked'
cd '${dir}'
case "$1 $2" in
  'bootout '*) [ -e loaded ] || exit 3; echo 2 > left; exit 36;;
  'print '*/flotilla-node)
    [ -e left ] && { n=$(cat left); [ "$n" = 0 ] && rm -f left loaded || echo $((n - 1)) > left; }
    [ -e loaded ];;
  'bootstrap '*) [ ! -e loaded ] || exit 5; touch loaded;;
esac
`,
  );
  await chmod(join(dir, 'launchctl'), 0o755);
  const flags = ['--manager', 'launchd', '--no-system'];
  await mkdir(join(dir, 'Library/LaunchAgents'), { recursive: true });
  for (const _time of [1, 2]) {
    expect(await service('install', '--state-dir', state, ...flags)).toMatchObject({ code: 0 });
    expect((await asked()).at(-1)).toContain('bootstrap');
  }
  expect(await service('uninstall', ...flags)).toMatchObject({ code: 0 });
  await expect(readFile(join(dir, 'loaded'))).rejects.toThrow('ENOENT');
});

test('a machine that has not joined gets no service, and is told how to join', async () => {
  const { dir, service } = await machine();
  const told = await service(
    'install',
    '--state-dir',
    join(dir, 'nothing'),
    '--dry-run',
    '--manager',
    'systemd',
  );
  expect(told).toMatchObject({ code: 1, stdout: '' });
  expect(told.stderr).toContain('flotilla join');
});
