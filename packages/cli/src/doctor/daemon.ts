import { stat } from 'node:fs/promises';
import type { LocalStatus } from '../node/status.ts';
import { plural } from '../terminal/text.ts';
import { type Check, textOf } from './check.ts';

/** The daemon of this machine, if it has joined a fleet. */
export async function checkDaemon(dir: string): Promise<Check[]> {
  const { callDaemon, DaemonCallError, readCredential, statePaths } = await import('@flotilla/daemon/local');
  const paths = statePaths(dir);
  const there = await stat(paths.credential).catch(() => null);
  if (there === null)
    return [check('joined', 'skip', `this machine has joined no fleet (nothing in ${dir})`)];
  const checks: Check[] = [];
  try {
    await readCredential(paths);
    checks.push(check('credential', 'ok', `${paths.credential} can be read`));
  } catch (error) {
    checks.push(check('credential', 'fail', textOf(error)));
  }
  if (process.platform !== 'win32' && (there.mode & 0o077) !== 0) {
    const mode = (there.mode & 0o777).toString(8);
    const next = `chmod 600 ${paths.credential}; then flotilla nodes rotate: others may have read it`;
    checks.push(check('credential', 'fail', `others on this machine may read it (mode ${mode})`, next));
  }
  try {
    const status = (await callDaemon(dir, { verb: 'status' })) as unknown as LocalStatus;
    checks.push(...running(status));
  } catch (error) {
    const gone = error instanceof DaemonCallError && error.code === 'not_running';
    const found = gone ? 'no daemon runs here' : textOf(error);
    checks.push(check('daemon', 'fail', found, 'flotilla node run'));
  }
  return checks;
}

const check = (name: string, state: Check['state'], found: string, next?: string): Check => ({
  area: 'this node',
  name,
  state,
  found,
  ...(next === undefined ? {} : { next }),
});

function running(status: LocalStatus): Check[] {
  const { name, version, pid, link, backends, ignored_servers: ignored, journal } = status;
  const checks = [check('daemon', 'ok', `${name}, version ${version}, process ${pid}`)];
  const rtt = link.rtt_ms === null ? '' : `, ${Math.round(link.rtt_ms)} ms there and back`;
  checks.push(
    link.state === 'connected'
      ? check('link', 'ok', `connected to ${link.url}${rtt}`)
      : check('link', 'fail', `${link.state}: ${link.reason ?? 'no reason known'}`, 'flotilla node status'),
  );
  if (backends.length === 0) {
    checks.push(
      check('backends', 'warn', 'no model server was found here', 'Start one, or name it: --backend URL.'),
    );
  }
  for (const { id, url, health, reason, models } of backends) {
    const found = `${url}, ${plural(models.length, 'model')}`;
    checks.push(
      health === 'healthy'
        ? check(id, 'ok', found)
        : check(
            id,
            health === 'down' ? 'fail' : 'warn',
            `${found}: ${health}, ${reason ?? 'no reason known'}`,
          ),
    );
  }
  if (journal?.health === 'healthy') checks.push(check('journal', 'ok', 'detached work can be written down'));
  else if (journal !== undefined) {
    const next = 'The daemon tries again by itself, a minute apart at most.';
    checks.push(check('journal', 'fail', `no detached work: ${journal.reason ?? journal.health}`, next));
  }
  for (const { url, reason } of ignored) checks.push(check('not used', 'warn', `${url}: ${reason}`));
  return checks;
}
