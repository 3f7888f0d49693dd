import { chmod, rm } from 'node:fs/promises';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { z } from 'zod';
import { isNodeCredential, statePaths } from './state-dir.ts';

/**
 * `control.sock`: how the commands on this machine talk to the daemon. One line of JSON asks, one line answers. Who may
 * ask is decided by the file system: the directory and the socket are their owner's alone.
 */
const requestSchema = z.discriminatedUnion('verb', [
  z.strictObject({ verb: z.literal('status') }),
  z.strictObject({
    verb: z.literal('drain'),
    deadline_ms: z.number().int().min(0).max(86_400_000).optional(),
    /** Answer when the work has ended, not when draining has begun. */
    wait: z.boolean().optional(),
  }),
  z.strictObject({
    verb: z.literal('leave'),
    deadline_ms: z.number().int().min(0).max(86_400_000).optional(),
  }),
  z.strictObject({ verb: z.literal('reload') }),
  z.strictObject({ verb: z.literal('credential'), credential: z.string().refine(isNodeCredential) }),
]);
export type ControlRequest = z.infer<typeof requestSchema>;
export type ControlAnswer =
  | { ok: true; [more: string]: unknown }
  | { ok: false; code: string; message: string };
export type ControlHandler = (request: ControlRequest) => Promise<ControlAnswer>;

const MOST_BYTES = 64 * 1024;
/** The kernel's limit for a socket's path (macOS 104, Linux 108), less its final zero. */
const LONGEST_PATH = 103;

export interface ControlSocket {
  /** Hears no more; ends when what was asked has been answered. */
  close(): Promise<void>;
}

/** Listens; the caller holds the directory's lock, so that a socket left by a crash may be removed. */
export async function openControlSocket(path: string, handle: ControlHandler): Promise<ControlSocket> {
  if (Buffer.byteLength(path) > LONGEST_PATH) {
    throw new Error(
      `The path of the control socket is too long for the system: ${path}. Give a shorter --state-dir.`,
    );
  }
  await rm(path, { force: true });
  const open = new Set<Socket>();
  const answering = new Set<Promise<void>>();
  const server = createServer((socket) => {
    open.add(socket);
    socket.on('close', () => open.delete(socket));
    socket.on('error', () => socket.destroy()); // the command went away
    readLine(socket, (line) => {
      const answered = answer(socket, line, handle).finally(() => answering.delete(answered));
      answering.add(answered);
    });
  });
  await listen(server, path);
  await chmod(path, 0o600);
  return {
    async close() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      await Promise.all(answering);
      for (const socket of open) socket.destroySoon();
      await closed;
      await rm(path, { force: true });
    },
  };
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

function readLine(socket: Socket, then: (line: string) => void): void {
  let text = '';
  socket.setEncoding('utf8');
  socket.on('data', (chunk: string) => {
    text += chunk;
    const end = text.indexOf('\n');
    if (end === -1 && text.length <= MOST_BYTES) return;
    socket.removeAllListeners('data');
    socket.resume();
    then(end === -1 ? '' : text.slice(0, end));
  });
}

async function answer(socket: Socket, line: string, handle: ControlHandler): Promise<void> {
  const result = await respond(line, handle);
  socket.end(`${JSON.stringify(result)}\n`);
}

async function respond(line: string, handle: ControlHandler): Promise<ControlAnswer> {
  const request = requestSchema.safeParse(parseJson(line));
  if (!request.success) {
    return { ok: false, code: 'invalid_request', message: whatIsWrong(request.error) };
  }
  try {
    return await handle(request.data);
  } catch (error) {
    return { ok: false, code: 'failed', message: (error as Error).message };
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Of a line without a verb that is known, what a line has to be; else each setting at fault. */
function whatIsWrong({ issues }: z.ZodError): string {
  if (issues.some(({ code, path }) => path[0] === 'verb' || (code === 'invalid_type' && path.length === 0))) {
    return 'One line of JSON with a verb: status, drain, leave, reload or credential.';
  }
  return issues.map(({ path, message }) => [...path, message].join(': ')).join('\n');
}

/** The daemon could not be asked, or refused. */
export class DaemonCallError extends Error {
  override readonly name = 'DaemonCallError';
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

/**
 * Asks the daemon that runs on a state directory.
 * @throws {DaemonCallError} `not_running`, `forbidden`, `timeout`, or what the daemon refused with
 */
export async function callDaemon(
  state_dir: string,
  request: ControlRequest,
  timeout_ms: number | null = patience(request),
): Promise<Record<string, unknown>> {
  const line = await exchange(state_dir, `${JSON.stringify(request)}\n`, timeout_ms);
  let result: unknown;
  try {
    result = JSON.parse(line);
  } catch {
    throw new DaemonCallError('not_running', `The daemon on ${state_dir} ended before it answered.`);
  }
  const refusal = z.object({ ok: z.literal(false), code: z.string(), message: z.string() }).safeParse(result);
  if (refusal.success) throw new DaemonCallError(refusal.data.code, refusal.data.message);
  return z.record(z.string(), z.unknown()).parse(result);
}

/** What waits for running work has its end in the daemon; a daemon that dies closes the socket. */
function patience(request: ControlRequest): number | null {
  const waits = request.verb === 'leave' || (request.verb === 'drain' && request.wait === true);
  return waits ? null : 30_000;
}

function exchange(state_dir: string, line: string, timeout_ms: number | null): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = '';
    const socket = connect(statePaths(state_dir).control);
    const giveUp = () => {
      socket.destroy();
      reject(new DaemonCallError('timeout', `The daemon on ${state_dir} did not answer in time.`));
    };
    const timer = timeout_ms === null ? undefined : setTimeout(giveUp, timeout_ms);
    socket.setEncoding('utf8');
    socket.on('connect', () => socket.write(line));
    socket.on('data', (chunk: string) => {
      text += chunk;
    });
    socket.on('error', (error: NodeJS.ErrnoException) => reject(callError(state_dir, error)));
    socket.on('close', () => {
      clearTimeout(timer);
      resolve(text.split('\n')[0]!);
    });
  });
}

function callError(state_dir: string, error: NodeJS.ErrnoException): DaemonCallError {
  if (error.code === 'EACCES' || error.code === 'EPERM') {
    return new DaemonCallError(
      'forbidden',
      `The daemon on ${state_dir} belongs to another user. Run this as that user.`,
    );
  }
  if (error.code === 'ENOENT' || error.code === 'ECONNREFUSED') {
    return new DaemonCallError(
      'not_running',
      `No daemon runs on ${state_dir}. Start it with \`flotilla node run\`, or give its directory with --state-dir.`,
    );
  }
  return new DaemonCallError('failed', `The daemon on ${state_dir} cannot be asked: ${error.message}`);
}
