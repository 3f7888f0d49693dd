import { FlotillaError } from '@flotilla/protocol';
import { EventEmitter } from 'node:events';
import type { Principal } from '../../packages/control/src/accounts/principal.ts';
import type { Gateway } from '../../packages/control/src/gateway/gateway.ts';
import { readSubmission } from '../../packages/control/src/detached/submissions.ts';
import type { Chance } from './chance.ts';
import type { Process } from './machine.ts';
import { MODEL } from './node.ts';
import type { Serving } from './replica.ts';
import type { Scheduler } from './scheduler.ts';

/** What a client saw of one attached request. */
export interface Attached {
  readonly request_id: string;
  readonly stream: boolean;
  /** The control plane that was asked, by its name among them; null: none yet. */
  at: string | null;
  /** Null: nothing yet. */
  status: number | null;
  received: string;
  /** `whole`: the answer ended as one does; `cut`: its connection broke; `left`: it went away itself. */
  end: 'whole' | 'cut' | 'left' | null;
}

/** What a client knows of one detached job. */
export interface Submitted {
  readonly request_id: string;
  readonly idempotency_key: string;
  /** As it was acknowledged: one, however often it was sent. */
  readonly jobs: Set<string>;
  /** Given up before anybody acknowledged it. */
  given_up: boolean;
}

export interface ClientDeps {
  scheduler: Scheduler;
  chance: Chance;
  /** One that takes clients now. */
  anywhere: () => Serving | undefined;
  credential: string;
  /** The control plane has given this client something. */
  heard: (client: Attached) => void;
  acked: (job: Submitted) => void;
}

const RETRY_MS = 500;
type ServeArgs = Parameters<Gateway['serve']>;

/** Sends a request, once, wherever it is taken; leaves after a while where it is told to. */
export function attachedClient(
  deps: ClientDeps,
  asked: {
    request_id: string;
    stream: boolean;
    wants_usage: boolean;
    words: number;
    leaves_after_ms: number | null;
  },
): Attached {
  const { chance, scheduler } = deps;
  const { request_id, stream, wants_usage, words } = asked;
  const client: Attached = {
    request_id,
    stream,
    at: null,
    status: null,
    received: '',
    end: null,
  };
  const body = Buffer.from(
    JSON.stringify({
      model: MODEL,
      max_tokens: words,
      messages: [{ role: 'user', content: 'x'.repeat(chance.whole(1, 2000)) }],
      ...(stream && { stream }),
      ...(wants_usage && { stream_options: { include_usage: true } }),
    }),
  );
  send();
  return client;

  function send(): void {
    const serving = deps.anywhere();
    if (serving === undefined) return void scheduler.after(RETRY_MS, send);
    client.at = serving.id;
    const wire = new Wire(client, serving.process, chance, deps.heard);
    serving.process.onDeath(() => wire.cut());
    serving.process.arrives(scheduler.now_ms + chance.delay(0.5, 30), () => {
      const principal = principalFor(serving, deps.credential);
      const request = { id: request_id, headers: {}, body } as unknown as ServeArgs[0];
      const reply = { hijack() {}, getHeaders: () => ({}), raw: wire } as unknown as ServeArgs[1];
      serving.gateway.serve(request, reply, 'chat', principal).catch((error: unknown) => wire.refused(error));
    });
    const { leaves_after_ms } = asked;
    if (leaves_after_ms !== null) scheduler.after(leaves_after_ms, () => wire.leave());
  }
}

/** The client's connection, as far as an answer uses a `ServerResponse`. */
class Wire extends EventEmitter {
  headersSent = false;
  destroyed = false;
  closed = false;
  writableEnded = false;
  writableFinished = false;
  readonly #client: Attached;
  readonly #process: Process;
  readonly #chance: Chance;
  readonly #heard: (client: Attached) => void;

  constructor(client: Attached, process: Process, chance: Chance, heard: (client: Attached) => void) {
    super();
    this.#client = client;
    this.#process = process;
    this.#chance = chance;
    this.#heard = heard;
  }

  writeHead(status: number): void {
    this.headersSent = true;
    this.#client.status = status;
  }

  write(bytes: Uint8Array, taken: (error?: Error | null) => void): void {
    this.#take(bytes);
    this.#later(() => taken(this.destroyed ? new Error('closed') : null));
  }

  end(bytes?: Uint8Array): void {
    this.writableEnded = true;
    if (bytes !== undefined) this.#take(bytes);
    this.#ends('whole');
    this.#later(() => {
      if (this.destroyed) return;
      this.writableFinished = true;
      this.#close();
    });
  }

  destroy(): void {
    this.#ends('cut');
    if (this.destroyed) return;
    this.destroyed = true;
    this.#later(() => this.#close());
  }

  /** Refused before it was work. */
  refused(error: unknown): void {
    if (!(error instanceof FlotillaError)) throw error;
    this.#client.status ??= error.status;
    this.#ends('whole');
  }

  cut(): void {
    this.#ends('cut');
  }

  leave(): void {
    if (this.#client.end !== null) return;
    this.#ends('left');
    this.#later(() => {
      if (this.writableFinished || this.destroyed) return;
      this.destroyed = true;
      this.#close();
    });
  }

  #take(bytes: Uint8Array): void {
    if (this.#client.end !== null || this.destroyed) return;
    this.#client.received += Buffer.from(bytes).toString();
    this.#heard(this.#client);
  }

  #ends(end: NonNullable<Attached['end']>): void {
    if (this.#client.end !== null) return;
    this.#client.end = end;
    this.#heard(this.#client);
  }

  #close(): void {
    if (this.closed) return;
    this.closed = true;
    this.emit('close');
  }

  #later(run: () => void): void {
    const { scheduler } = this.#process.machine.nature;
    this.#process.arrives(scheduler.now_ms + this.#chance.delay(0.5, 60), run);
  }
}

/** Submits a job, and again with the same key until it is acknowledged, wherever it is taken. */
export function detachedClient(
  deps: ClientDeps,
  asked: {
    request_id: string;
    words: number;
    on_node_loss: string;
    queue_timeout_ms: number;
    run_timeout_ms: number;
    tries: number;
    /** Sends it once more although it was acknowledged. */
    repeats: boolean;
  },
): Submitted {
  const { chance, scheduler } = deps;
  const { request_id, words, on_node_loss, queue_timeout_ms, run_timeout_ms } = asked;
  const job: Submitted = {
    request_id,
    idempotency_key: request_id,
    jobs: new Set(),
    given_up: false,
  };
  const body = Buffer.from(
    JSON.stringify({
      kind: 'inference',
      model: MODEL,
      operation: 'chat',
      queue_timeout_ms,
      run_timeout_ms,
      metadata: { on_node_loss },
      request: {
        max_tokens: words,
        messages: [{ role: 'user', content: 'x'.repeat(chance.whole(1, 2000)) }],
      },
    }),
  );
  let tries = 0;
  send();
  return job;

  function send(): void {
    const serving = deps.anywhere();
    if (tries++ >= asked.tries) job.given_up = job.jobs.size === 0;
    else if (serving === undefined) scheduler.after(RETRY_MS, send);
    else ask(serving);
  }

  function ask(serving: Serving): void {
    let over = false;
    const again = () => {
      if (over) return;
      over = true;
      if (job.jobs.size === 0) scheduler.after(RETRY_MS, send);
    };
    const answered = (id: string) => {
      if (over) return;
      over = true;
      job.jobs.add(id);
      deps.acked(job);
      if (asked.repeats && tries < asked.tries) scheduler.after(chance.between(0, 3000), send);
    };
    serving.process.onDeath(again);
    serving.process.arrives(scheduler.now_ms + chance.delay(0.5, 30), () => {
      submit(serving, deps.credential, request_id, body, job.idempotency_key).then(
        answered,
        (error: unknown) => {
          if (!(error instanceof FlotillaError)) throw error;
          again();
        },
      );
    });
  }
}

/** As `http/detached.ts` does. */
async function submit(
  serving: Serving,
  credential: string,
  request_id: string,
  body: Buffer,
  idempotency_key: string,
): Promise<string> {
  const { config, gateway, limits, detached } = serving;
  const rules = {
    permittedModel: (asked: string, principal: Principal) => gateway.permittedModel(asked, principal),
    queue_timeout_ms: config.detached_queue_timeout_ms,
    run_timeout_ms: config.run_timeout_ms,
    retention_ms: config.detached_retention_ms,
  };
  const principal = principalFor(serving, credential);
  const submission = readSubmission(
    rules,
    { principal, request_id, traceparent: null },
    body,
    idempotency_key,
  );
  const admission = await limits.admit(principal.key, submission.size);
  admission.release();
  try {
    const acceptance = await detached.accept(submission, admission);
    if ('accepted' in acceptance) return acceptance.accepted;
    admission.undo();
    if ('existing' in acceptance) return acceptance.existing;
    throw new FlotillaError('conflict', acceptance.conflict);
  } catch (error) {
    admission.undo();
    throw error;
  }
}

function principalFor(serving: Serving, credential: string): Principal {
  const found = serving.keys.authenticate(credential);
  if (!('principal' in found)) throw new FlotillaError('unauthorized', found.refused);
  return found.principal;
}
