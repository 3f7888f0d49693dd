import type { Clock, Log } from '@flotilla/core';
import { makeId } from '@flotilla/protocol';
import manifest from '../package.json' with { type: 'json' };
import { systemClock, systemRandom } from './clock.ts';
import { type Config, ConfigError, type ConfigFlags, loadConfig, unknownVariables } from './config.ts';
import { AddressError, addressText, controlAddress } from './control-address.ts';
import { Daemon } from './daemon.ts';
import type { DaemonEvent } from './link-news.ts';
import { openLog } from './log.ts';
import { lockStateDir, openStateDir, readCredential, StateDirError, stateDirOf } from './state-dir.ts';
import { createStopRequests } from './stop-requests.ts';

export interface RunOptions {
  /** Otherwise `FLOTILLA_NODE_STATE_DIR`, otherwise `~/.flotilla/node`. */
  state_dir?: string | undefined;
  /** What the command was given; outranks environment and `node.yaml`. */
  flags?: ConfigFlags | undefined;
  environment?: NodeJS.ProcessEnv | undefined;
  /** Otherwise lines on stderr. */
  log?: Log | undefined;
  /** SIGTERM, SIGINT (drain; the second time at once) and SIGHUP (reload). Default true; false where the caller has its own. */
  handle_signals?: boolean | undefined;
  /** Aborting it does what SIGTERM does. */
  signal?: AbortSignal | undefined;
  /** Aborting it does what the second SIGTERM does. */
  kill?: AbortSignal | undefined;
  on_event?: ((event: DaemonEvent) => void) | undefined;
  /** Told instead of the log why it did not start, where that is for the operator to mend. */
  on_refused?: ((reason: Error) => void) | undefined;
  /** For tests and bundles. */
  clock?: Clock | undefined;
  link_script?: URL | undefined;
  find_ports?: readonly number[] | undefined;
}

/** A worker's file has the ending of the file that starts it: sources run as they are, a build is JavaScript. */
const LINK_SCRIPT = import.meta.url.endsWith('.ts')
  ? new URL('./link/thread.ts', import.meta.url)
  : new URL('./link/thread.js', import.meta.url);

/**
 * Runs this machine's daemon until it has stopped.
 * @returns the exit code: 0 drained, 1 failed, 2 wrong settings, 3 told to stop for good
 */
export async function runDaemon(options: RunOptions = {}): Promise<number> {
  const environment = options.environment ?? process.env;
  const flags = options.flags ?? {};
  // Until the settings are read, and if they cannot be, this is what says so.
  let log = options.log ?? openLog('info');
  try {
    const paths = await openStateDir(stateDirOf(options.state_dir, environment));
    const config = await loadConfig(paths.config, { environment, flags });
    log = options.log ?? openLog(config.log_level);
    for (const problem of unknownVariables(environment)) log.warn({}, problem);
    const lock = await lockStateDir(paths);
    try {
      const credential = await readCredential(paths);
      if (credential === null) {
        throw new StateDirError(
          `This machine is not enrolled (no credential in ${paths.dir}). Run \`flotilla join URL --token fle_…\`.`,
        );
      }
      const clock = options.clock ?? systemClock;
      const daemon = new Daemon({
        paths,
        config,
        credential,
        control_url: controlUrl(config, credential.url, credential.insecure, log),
        boot_id: makeId('boot', clock.wall_ms(), systemRandom.bytes(10)),
        version: manifest.version,
        log,
        clock,
        link_script: options.link_script ?? LINK_SCRIPT,
        sources: { environment, flags },
        find_ports: options.find_ports,
        on_event: options.on_event ?? (() => {}),
      });
      return await runUnderSignals(daemon, options, log);
    } finally {
      lock.release();
    }
  } catch (error) {
    return explain(error, options.on_refused ?? ((reason) => log.error({}, reason.message)), log);
  }
}

function controlUrl(config: Config, enrolled: string, insecure: boolean, log: Log): string {
  const addresses = (config.control_url ?? enrolled).split(',');
  const url = addresses.map((address) => addressText(controlAddress(address, insecure))).join(',');
  if (url !== enrolled)
    log.warn({ enrolled, url }, 'The control plane is at another address than at enrolment.');
  return url;
}

async function runUnderSignals(daemon: Daemon, options: RunOptions, log: Log): Promise<number> {
  const request = createStopRequests((delay_ms, run) => setTimeout(run, delay_ms).unref());
  const drain = (name: string) => {
    if (request() !== 'the same again') daemon.signalled(name);
  };
  const onHangUp = (name: string) => {
    // A closed terminal ends what was started in it; a service manager means: read the settings again.
    if (process.stderr.isTTY) return drain(name);
    daemon
      .reload()
      .catch((error: unknown) =>
        log.error({ reason: (error as Error).message }, 'The settings were not read again.'),
      );
  };
  const onAbort = () => daemon.signalled('stopped by its caller');
  const onKill = () => daemon.stopNow('stopped by its caller');
  const handlers: [NodeJS.Signals, (name: string) => void][] = [
    ['SIGTERM', drain],
    ['SIGINT', drain],
    ['SIGHUP', onHangUp],
  ];
  const own = options.handle_signals === false ? [] : handlers;
  for (const [name, handler] of own) process.on(name, handler);
  options.signal?.addEventListener('abort', onAbort, { once: true });
  options.kill?.addEventListener('abort', onKill, { once: true });
  if (options.signal?.aborted === true) onAbort();
  try {
    return await daemon.run();
  } finally {
    for (const [name, handler] of own) process.off(name, handler);
    options.signal?.removeEventListener('abort', onAbort);
    options.kill?.removeEventListener('abort', onKill);
  }
}

/** What an operator can mend is one sentence; the rest is a fault of ours, with its stack. */
function explain(error: unknown, refused: (reason: Error) => void, log: Log): number {
  if (error instanceof ConfigError) {
    refused(error);
    return 2;
  }
  if (error instanceof StateDirError || error instanceof AddressError) refused(error);
  else
    log.error({ err: error }, `The daemon failed: ${error instanceof Error ? error.message : String(error)}`);
  return 1;
}
