import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import type { ControlConfig, RunningControl } from '@flotilla/control';
import { Flotilla } from '@flotilla/sdk';
import { dataDir, makeDataDir, secretKeyPath } from '../data-dir.ts';
import { UsageError } from '../failure.ts';
import { openLogFile } from '../log-file.ts';
import { stopSignal } from '../process-end.ts';
import { note, print } from '../terminal/output.ts';
import { adminKey, type AdminKey } from './admin-key.ts';
import { keptSecret } from './kept-secret.ts';
import { type LocalNode, nodeStateDir, startLocalNode } from './local-node.ts';
import type { Part } from './part.ts';
import { Progress } from './progress.ts';
import { type Servable, waitServable } from './servable.ts';
import { startSimulation } from './simulation.ts';
import { StartLog } from './start-log.ts';
import { summary } from './summary.ts';

export interface UpFlags {
  port?: number;
  host?: string;
  publicUrl?: string;
  dataDir?: string;
  /** False with `--no-node`. */
  node: boolean;
  sim?: boolean;
  json?: boolean;
}

const MODEL_PATIENCE_MS = 30_000;

/**
 * Everything on one machine. Order of the start: control plane, simulated backend if one is needed, node, a model that
 * can be served, and only then the summary: what it prints works. Order of the end, however it comes about: node
 * (its work is finished or moved), simulated backend, control plane.
 */
export async function runUp(flags: UpFlags): Promise<void> {
  const progress = new Progress(flags.json === true);
  const stop = new AbortController();
  const parts: Part[] = [];
  let control: RunningControl | undefined;
  const asked = stopSignal().then(() => {
    progress.end();
    note(`Stopping: ${finishedFirst(control, parts)}. Once more ends it at once.`);
    stop.abort(new StopAsked());
  });
  try {
    progress.tell('Starting the control plane…');
    const data_dir = dataDir(flags.dataDir);
    await makeDataDir(data_dir);
    const key = await adminKey(data_dir);
    const started = await startControl(flags, data_dir, key, progress);
    control = started.control;
    stop.signal.throwIfAborted();
    const client = new Flotilla({ url: control.url, api_key: key.key });
    const node = await startNode(flags, client, control.url, data_dir, parts, progress, stop.signal);
    const servable = node && (await waitForModel(client, node.local, progress, stop.signal));
    progress.end();
    print(await summary({ flags, client, config: started.config, control, key, node, servable, parts }));
    await Promise.race([asked, control.closed]);
  } catch (error) {
    if (!(error instanceof StopAsked)) throw error;
  } finally {
    progress.end();
    await end(parts, control);
  }
}

/** What the person who has asked for the end waits for. */
function finishedFirst(control: RunningControl | undefined, parts: Part[]): string {
  if (control === undefined) return 'the control plane, which is just starting, ends in good order';
  if (parts.some(({ name }) => name === 'node')) return 'the node finishes its work first';
  return 'answers under way are finished first';
}

/** Ctrl-C, or a signal: the end of the start-up, wherever it was. */
class StopAsked extends Error {
  override readonly name = 'StopAsked';
}

export interface StartedNode {
  local: LocalNode;
  simulated: string | undefined;
}

async function startControl(
  flags: UpFlags,
  data_dir: string,
  key: AdminKey,
  progress: Progress,
): Promise<{ config: ControlConfig; control: RunningControl }> {
  const { openLog, readControlConfig, runControl } = await import('@flotilla/control');
  // `up` is the embedded store and one replica; what is set for others here is not meant for it.
  const { DATABASE_URL, NATS_URL: _nats, FLOTILLA_ADMIN_KEY: _key, ...environment } = process.env;
  if (DATABASE_URL)
    note('DATABASE_URL is not used: `flotilla up` has the embedded store; `flotilla control` uses it.');
  const config = readControlConfig(environment, {
    ...(await secretKey(data_dir)),
    port: flags.port,
    host: flags.host,
    public_url: flags.publicUrl,
    data_dir,
    admin_key: key.key,
  });
  if (config.tls_cert !== undefined && config.public_url === undefined) {
    throw new UsageError(
      'With FLOTILLA_TLS_CERT, the node here needs the name that the certificate is for.',
      'Give it with --public-url or FLOTILLA_PUBLIC_URL, like https://fleet.example:7400.',
    );
  }
  const log = openLog(config.log_level, openLogFile(join(data_dir, 'logs', 'control.log')));
  const start_log = new StartLog(log, progress);
  const control = await runControl(config, { log: start_log });
  start_log.started();
  return { config, control };
}

/** What seals the keys of providers: the operator's own, or one that is made and kept here. */
async function secretKey(data_dir: string): Promise<{ secret_key?: string }> {
  if (process.env['FLOTILLA_SECRET_KEY']) return {};
  const { secret } = await keptSecret(secretKeyPath(data_dir), () => randomBytes(32).toString('base64url'));
  return { secret_key: secret };
}

async function startNode(
  flags: UpFlags,
  client: Flotilla,
  url: string,
  data_dir: string,
  parts: Part[],
  progress: Progress,
  signal: AbortSignal,
): Promise<StartedNode | undefined> {
  if (!flags.node) return undefined;
  progress.tell('Looking for model servers…');
  let simulated: string | undefined;
  if (flags.sim === true || !(await hasBackend(data_dir))) {
    signal.throwIfAborted();
    const simulation = await startSimulation(data_dir);
    parts.push(simulation.part);
    simulated = simulation.url;
  }
  signal.throwIfAborted();
  progress.tell('Starting the node…');
  const local = await startLocalNode(client, url, data_dir, simulated);
  parts.push(local.part);
  return { local, simulated };
}

/** Whether the node will have a model server: one that it is told of, or one that is found. */
async function hasBackend(data_dir: string): Promise<boolean> {
  const { findBackends, loadConfig } = await import('@flotilla/daemon');
  const { statePaths } = await import('@flotilla/daemon/local');
  const config = await loadConfig(statePaths(nodeStateDir(data_dir)).config, { environment: process.env });
  if (config.backends.length > 0) return true;
  return config.find_backends && (await findBackends()).found.some(({ models }) => models.length > 0);
}

async function waitForModel(
  client: Flotilla,
  node: LocalNode,
  progress: Progress,
  signal: AbortSignal,
): Promise<Servable | string> {
  const isRunning = () => node.part.running;
  return waitServable(client, node.id, MODEL_PATIENCE_MS, signal, isRunning, (reason) => {
    progress.tell(`Waiting for a model: ${reason}`);
  });
}

async function end(parts: Part[], control: RunningControl | undefined): Promise<void> {
  // Last started, first ended: the node before the backend that it asks.
  for (const part of parts.toReversed()) await part.stop();
  await control?.close();
}
