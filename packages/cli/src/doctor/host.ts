import { constants } from 'node:fs';
import { access, stat, statfs } from 'node:fs/promises';
import { connect } from 'node:net';
import { type Check, textOf } from './check.ts';

const MIB = 1024 * 1024;
const FULL_MIB = 512;
const SCARCE_MIB = 5 * 1024;
const EXPIRES_SOON_MS = 14 * 86_400_000;
const CONNECT_WITHIN_MS = 2000;

/**
 * This machine, as a control plane with this environment would find it.
 * @param data_dir where its embedded store is; undefined: it uses a database
 */
export async function checkHost(data_dir: string | undefined, port: number | undefined): Promise<Check[]> {
  const checks = [node(), ...(await settings(port))];
  if (data_dir !== undefined) checks.push(await directory(data_dir), ...(await disk(data_dir)));
  return checks;
}

const host = (name: string, state: Check['state'], found: string, next?: string): Check => ({
  area: 'host',
  name,
  state,
  found,
  ...(next === undefined ? {} : { next }),
});

function node(): Check {
  const major = Number(process.versions.node.split('.')[0]);
  const found = `Node.js ${process.versions.node} on ${process.platform}-${process.arch}`;
  return major >= 24
    ? host('Node.js', 'ok', found)
    : host('Node.js', 'fail', found, 'Use Node.js 24 or newer.');
}

async function settings(port: number | undefined): Promise<Check[]> {
  const { loadTls, readControlConfig } = await import('@flotilla/control');
  let config: ReturnType<typeof readControlConfig>;
  try {
    config = readControlConfig(process.env);
  } catch (error) {
    return [host('settings', 'fail', textOf(error), 'docs/reference/settings.md lists what each can be.')];
  }
  const checks: Check[] =
    config.warnings.length === 0
      ? [host('settings', 'ok', 'every FLOTILLA_ variable is known and usable')]
      : config.warnings.map((warning) => host('settings', 'warn', warning));
  if (config.tls_cert !== undefined && config.tls_key !== undefined) {
    try {
      const { expires_at } = await loadTls({ cert: config.tls_cert, key: config.tls_key });
      const until = new Date(expires_at).toISOString();
      if (expires_at <= Date.now()) {
        checks.push(
          host(
            'TLS files',
            'fail',
            `the certificate expired at ${until}`,
            'Renew it; it is taken up at once.',
          ),
        );
      } else if (expires_at - Date.now() < EXPIRES_SOON_MS) {
        checks.push(host('TLS files', 'warn', `the certificate expires at ${until}`, 'Renew it.'));
      } else checks.push(host('TLS files', 'ok', `certificate and key fit, until ${until}`));
    } catch (error) {
      checks.push(host('TLS files', 'fail', textOf(error)));
    }
  }
  checks.push(await portOf(config.host, port ?? config.port));
  return checks;
}

async function portOf(address: string, port: number): Promise<Check> {
  const at = address === '0.0.0.0' || address === '::' ? '127.0.0.1' : address;
  const taken = await new Promise<boolean>((answer) => {
    const socket = connect({ host: at, port, timeout: CONNECT_WITHIN_MS });
    const done = (result: boolean) => {
      socket.destroy();
      answer(result);
    };
    socket
      .on('connect', () => done(true))
      .on('error', () => done(false))
      .on('timeout', () => done(false));
  });
  if (!taken) return host('port', 'ok', `nothing listens at ${at}:${port}; a control plane can start there`);
  const scheme = await fetch(`http://${at}:${port}/healthz`, {
    signal: AbortSignal.timeout(CONNECT_WITHIN_MS),
  })
    .then((reply) => reply.json())
    .catch(() => null);
  return typeof scheme === 'object' && scheme !== null && 'status' in scheme
    ? host('port', 'ok', `a control plane listens at ${at}:${port}`)
    : host(
        'port',
        'warn',
        `something listens at ${at}:${port} that does not answer as a control plane without TLS does`,
        'If that is no control plane of yours, choose another port: --port or FLOTILLA_PORT.',
      );
}

async function directory(dir: string): Promise<Check> {
  try {
    const found = await stat(dir);
    if (!found.isDirectory())
      return host('data directory', 'fail', `${dir} is no directory`, 'Move it away.');
    await access(dir, constants.R_OK | constants.W_OK | constants.X_OK);
    if (process.platform !== 'win32' && (found.mode & 0o077) !== 0) {
      const mode = (found.mode & 0o777).toString(8);
      const what = `others on this machine may look into ${dir} (mode ${mode})`;
      return host('data directory', 'warn', what, `chmod 700 ${dir}`);
    }
    return host('data directory', 'ok', `${dir}, for its owner only`);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') {
      return host('data directory', 'skip', `${dir} is not there yet; a first start makes it`);
    }
    return host('data directory', 'fail', textOf(error), 'Give this user the directory, or name another.');
  }
}

async function disk(dir: string): Promise<Check[]> {
  const room = await statfs(dir).catch(() => null);
  if (room === null) return [];
  const left_mib = Math.floor((room.bavail * room.bsize) / MIB);
  const found = `${left_mib.toLocaleString('en')} MiB left for ${dir}`;
  if (left_mib < FULL_MIB)
    return [host('disk', 'fail', found, 'Make room: a store that cannot write serves nobody.')];
  if (left_mib < SCARCE_MIB) return [host('disk', 'warn', found, 'Make room before it is needed.')];
  return [host('disk', 'ok', found)];
}
