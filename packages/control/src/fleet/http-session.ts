import {
  BodyUsage,
  type Clock,
  type HttpHead,
  type Letter,
  Mailbox,
  STREAM_WINDOW_BYTES,
  SseScan,
  estimateUsage,
  judgeAnswer,
  slotKey,
} from '@flotilla/core';
import {
  type ControlMessage,
  END_OUTCOME,
  type ErrorCode,
  FRAME_KIND,
  FlotillaError,
  type FrameKind,
  type LeaseMessage,
  type NodeBeat,
  type NodeBeatAnswer,
  type NodeComplete,
  type NodeLeaseAnswer,
  type NodeMessageOf,
  type NodeOutput,
  type NodeRegister,
  type NodeRegisterAnswer,
  type TokenUsage,
} from '@flotilla/protocol';
import { createHash } from 'node:crypto';
import type { Readable } from 'node:stream';
import type { Attempt } from '../dispatch/attempt.ts';
import { CLOSE, type Link, type LinkEvents } from './link.ts';
import { type Upload, startUpload } from './upload.ts';

/**
 * The link of a small node that speaks plain HTTP: the same `Link`, with calls in the place of a socket. What is said
 * to the node lies in a mailbox until a lease call takes it and the next one acknowledges it.
 *
 *     open ──close(), deregistered, lease ended, credential withdrawn──▶ closed (every call: `wrong_session`)
 *
 * A lease call that is open proves nothing: liveness is the beats', as everywhere. There is no resume: who registers
 * anew holds nothing. Bounded: attempts by the slots, the mailbox by them, an upload by the stream's window.
 */
export interface HttpSession extends Link {
  readonly id: string;
  /** What the registration is answered with. */
  registered(): NodeRegisterAnswer;
  beat(beat: NodeBeat): NodeBeatAnswer;
  deregister(reason: string): void;
  /** @param gone the caller no longer waits: nothing is given to it */
  lease(call: { ack: number; wait_ms: number }, gone: AbortSignal): Promise<NodeLeaseAnswer>;
  /** @throws FlotillaError `conflict` when the attempt is over, as do all that follow */
  request(of: AttemptName): Uint8Array;
  accept(of: AttemptName): void;
  started(of: AttemptName): void;
  output(
    of: AttemptName,
    call: NodeOutput,
    body: Readable,
  ): Promise<{ acked_offset: number; window: number }>;
  // These end an attempt, or find it ended: neither is an error.
  reject(of: AttemptName, reason: string): void;
  released(of: AttemptName, started: boolean): void;
  complete(of: AttemptName, usage: ToldUsage | undefined): { outcome: Outcome };
  fail(of: AttemptName, failure: Pick<Failed, 'code' | 'message' | 'retryable'>): { outcome: Outcome };
}

type ToldUsage = NonNullable<NodeComplete['usage']>;
interface AttemptName {
  job: string;
  attempt: number;
}
type Failed = NodeMessageOf<'job.failed'>;
type Outcome = Extract<ControlMessage, { type: 'result.ack' }>['outcome'];

export interface HttpSessionOptions {
  id: string;
  epoch: number;
  clock: Clock;
  said: NodeRegister;
  desired(): NodeBeatAnswer['desired'];
  events: LinkEvents;
}

/** What the node was offered and has not let go of. */
interface Held {
  readonly attempt: Attempt;
  readonly offer: Letter<LeaseMessage>;
  /** The answer's status, once its head is here. */
  status: number | null;
  usage: SseScan | BodyUsage | null;
  upload: Upload | null;
}

/** The one pool and the one backend of such a node. */
const OWN = 'http';
/** A node that takes its letters and acknowledges none would ask without a pause. */
const REPEAT_AFTER_MS = 500;
/** A call takes a new connection and a process of its own on the other side: so much later may an answer come. */
const CALL_MS = 1000;
/** Whose completion the node may ask about again: an answer is lost seconds ago, not thousands of jobs. */
const COMPLETED_MOST = 1024;
/** Slots bound it far below this. */
const LETTERS_MOST = 1024;

export function httpDescriptor({
  slots,
  models,
  version,
  platform,
}: Pick<NodeRegister, 'slots' | 'models' | 'version' | 'platform'>) {
  const descriptor = {
    ...(version === undefined ? {} : { version }),
    ...(platform === undefined ? {} : { platform }),
    pools: [{ id: OWN, capacity: slots, capacity_from: 'config' }],
    backends: [
      {
        id: OWN,
        kind: OWN,
        pool: OWN,
        models: models.map((model) => (typeof model === 'string' ? { id: model } : model)),
      },
    ],
  };
  const descriptor_hash = createHash('sha256').update(JSON.stringify(descriptor)).digest('base64url');
  return { descriptor, descriptor_hash };
}

export function httpHealth({ health, reason }: Pick<NodeBeat, 'health' | 'reason'>) {
  return [{ id: OWN, health, ...(reason === undefined ? {} : { reason }), models: [] }];
}

type Woken = 'news' | 'time' | 'gone' | 'replaced' | 'draining' | 'closed';

export function openHttpSession(options: HttpSessionOptions): HttpSession {
  const { clock, events } = options;
  const box = new Mailbox<LeaseMessage>();
  const held = new Map<string, Held>();
  /** Attempts whose result was accepted, the last ones. */
  const completed = new Set<string>();
  /** Who waits to hear that the node lives. */
  const asking = new Set<() => void>();
  let { descriptor_hash } = httpDescriptor(options.said);
  let closed: FlotillaError | null = null;
  let heard = 0;
  let beats = 0;
  let next_stream = 1;
  let wake: ((why: Woken) => void) | null = null;
  // The answers that the connection gives within a call.
  let registered: Extract<ControlMessage, { type: 'node.registered' }> | undefined;
  let warnings: string[] = [];
  let outcome: Outcome = 'stale';

  const session: HttpSession = {
    id: options.id,
    epoch: options.epoch,
    // A shell script has no guard, and is given nothing that would need one.
    fences: false,
    rtt_ms: CALL_MS,
    get open() {
      return closed === null;
    },
    get heard() {
      return heard;
    },
    send,
    offer,
    resume: () => undefined,
    closeStream,
    credit(stream) {
      for (const one of held.values()) if (one.attempt.stream === stream) one.upload?.room();
    },
    roundTrip() {},
    alive,
    close,
    registered() {
      const { node_id, name, heartbeat_ms, lease_ttl_ms, desired } = registered!;
      return { session: options.id, node_id, name, heartbeat_ms, lease_ttl_ms, desired, warnings };
    },
    beat,
    deregister(reason) {
      called();
      events.message({ type: 'node.deregister', reason });
    },
    lease,
    request(of) {
      return taken(of).attempt.body;
    },
    accept(of) {
      taken(of);
      events.message({ type: 'job.accepted', ...of });
    },
    started(of) {
      taken(of);
      events.message({ type: 'job.started', ...of });
    },
    output,
    reject(of, reason) {
      called();
      events.message({ type: 'job.rejected', ...of, reason });
    },
    released(of, started) {
      called();
      held.get(keyOf(of))?.upload?.stop(over());
      events.message({ type: 'job.released', ...of, started });
    },
    complete,
    fail(of, failure) {
      called();
      held.get(keyOf(of))?.upload?.stop(over());
      return result({ type: 'job.failed', ...of, ...failure });
    },
  };
  return session;

  // ── The control plane's side ──

  function send(message: ControlMessage): void {
    switch (message.type) {
      case 'node.registered':
        registered = message;
        return;
      case 'node.heartbeat.ack':
        warnings = message.warnings;
        return;
      case 'result.ack':
        outcome = message.outcome;
        return;
      case 'job.cancel':
        return stopAttempt({ type: 'cancel', job: message.job, attempt: message.attempt });
      case 'job.abandon':
        return stopAttempt({
          type: 'abandon',
          job: message.job,
          attempt: message.attempt,
          reason: message.reason,
        });
      default:
        return;
    }
  }

  function offer(attempt: Attempt, deadlines: { run_ms: number; first_byte_ms: number; idle_ms: number }) {
    const { request } = attempt.job;
    attempt.stream = next_stream++;
    const letter = post({
      type: 'offer',
      job: request.id,
      attempt: attempt.number,
      operation: request.operation,
      streaming: request.streaming,
      body_length: attempt.body.byteLength,
      ...deadlines,
      model: attempt.spot.model,
      request_id: request.request_id,
      ...(request.traceparent !== null && { traceparent: request.traceparent }),
    });
    const of = { job: request.id, attempt: attempt.number };
    held.set(keyOf(of), { attempt, offer: letter, status: null, usage: null, upload: null });
  }

  function stopAttempt(message: Exclude<LeaseMessage, { type: 'offer' }>): void {
    const one = held.get(keyOf(message));
    if (one !== undefined && !one.offer.given) {
      // The node has never heard of it: nobody needs to be told, and nothing is left to wait for.
      box.remove(one.offer);
      one.offer.given = true;
      const { job, attempt } = message;
      clock.after(0, () => {
        if (closed === null) events.message({ type: 'job.released', job, attempt, started: false });
      });
      return;
    }
    one?.upload?.stop(over());
    post(message);
  }

  function post(message: LeaseMessage): Letter<LeaseMessage> {
    const letter = box.post(message);
    wake?.('news');
    if (box.size > LETTERS_MOST) {
      const fault = {
        code: 'invalid_request' as const,
        message: 'It acknowledges nothing of what it is told.',
      };
      clock.after(0, () => close(CLOSE.misbehaved, fault));
    }
    return letter;
  }

  function closeStream(attempt: Attempt): void {
    const key = keyOf({ job: attempt.job.id, attempt: attempt.number });
    const one = held.get(key);
    if (one?.attempt !== attempt) return;
    held.delete(key);
    box.remove(one.offer);
    attempt.stream = 0;
    one.upload?.stop(over());
  }

  /** Its open lease call is answered: whoever lives comes back with the next one, or with anything else. */
  function alive(within_ms: number): Promise<boolean> {
    return new Promise((resolve) => {
      const answered = () => finish(true);
      const timer = clock.after(within_ms, () => finish(false));
      const finish = (lives: boolean) => {
        timer.cancel();
        asking.delete(answered);
        resolve(lives);
      };
      asking.add(answered);
      wake?.('time');
    });
  }

  function close(code: number, error?: { code: ErrorCode; message: string }): void {
    if (closed !== null) return;
    closed = farewell(code, error?.message);
    for (const { attempt, upload } of held.values()) {
      attempt.stream = 0;
      upload?.stop(closed);
    }
    held.clear();
    wake?.('closed');
    events.closed('closed by the control plane');
  }

  // ── The node's side ──

  /** Every call is a sign of life to whoever asks for one; all but beats may be what an offer waits for. */
  function called(kind: 'call' | 'beat' = 'call'): void {
    if (closed !== null) throw closed;
    if (kind === 'call') heard++;
    for (const answered of [...asking]) answered();
  }

  function beat(said: NodeBeat): NodeBeatAnswer {
    called('beat');
    const { models, in_flight, draining } = said;
    if (models !== undefined) {
      const described = httpDescriptor({ ...options.said, models });
      if (described.descriptor_hash !== descriptor_hash) {
        descriptor_hash = described.descriptor_hash;
        events.message({ type: 'descriptor.update', ...described });
      }
    }
    events.message({
      type: 'node.heartbeat',
      seq: ++beats,
      descriptor_hash,
      pools: in_flight === undefined ? [] : [{ id: OWN, in_flight, capacity: options.said.slots }],
      leases_digest: '',
      backends: httpHealth(said),
      host: {},
      // There is no second thread that could stand still.
      progress_seq: beats,
      draining,
    });
    // A node in shell may be told to go just as it begins a call: it must not wait that call out.
    if (draining) wake?.('draining');
    return { desired: options.desired(), warnings };
  }

  async function lease(
    { ack, wait_ms }: { ack: number; wait_ms: number },
    gone: AbortSignal,
  ): Promise<NodeLeaseAnswer> {
    called();
    if (ack > box.given) {
      throw new FlotillaError('invalid_request', `Nothing with the number ${ack} was said in this session.`, {
        param: 'ack',
      });
    }
    for (const { message } of box.acknowledge(ack)) {
      if (message.type !== 'offer') continue;
      events.message({ type: 'job.accepted', job: message.job, attempt: message.attempt });
    }
    // One at a time: a node that has lost its call makes a new one, and the old one must take nothing with it.
    wake?.('replaced');
    const why = box.fresh
      ? 'news'
      : await news(box.size > 0 ? Math.min(wait_ms, REPEAT_AFTER_MS) : wait_ms, gone);
    if (closed !== null) throw closed;
    if (why === 'gone') throw new FlotillaError('cancelled', 'The call was broken off.');
    const letters = why === 'replaced' ? [] : box.take();
    return {
      ack: why === 'replaced' ? ack : box.given,
      desired: options.desired(),
      messages: letters.map(({ message }) => message),
    };
  }

  function news(wait_ms: number, gone: AbortSignal): Promise<Woken> {
    return new Promise((resolve) => {
      const onGone = () => finish('gone');
      const timer = clock.after(wait_ms, () => finish('time'));
      const finish = (why: Woken) => {
        timer.cancel();
        gone.removeEventListener('abort', onGone);
        if (wake === finish) wake = null;
        resolve(why);
      };
      wake = finish;
      if (gone.aborted) finish('gone');
      else gone.addEventListener('abort', onGone);
    });
  }

  /** The attempt, which the node thereby has: its offer needs not be said again. */
  function taken(of: AttemptName): Held {
    called();
    const one = held.get(keyOf(of));
    if (one === undefined || isOver(one.attempt)) throw over();
    box.remove(one.offer);
    one.offer.given = true;
    return one;
  }

  async function output(of: AttemptName, call: NodeOutput, body: Readable) {
    const one = taken(of);
    const { attempt } = one;
    if (call.offset > attempt.received) {
      throw new FlotillaError(
        'conflict',
        `A part is missing: the answer has ${attempt.received} bytes so far; send from there.`,
        { param: 'offset', more: { acked_offset: attempt.received } },
      );
    }
    one.upload?.stop(new FlotillaError('conflict', 'A newer call sends this answer.'));
    const upload = startUpload(
      body,
      clock,
      {
        received: () => attempt.received,
        room: () => Math.max(0, STREAM_WINDOW_BYTES - (attempt.received - attempt.credited)),
        head: (head) => takeHead(of, one, head),
        body(bytes) {
          one.usage?.push(bytes);
          frame(attempt, FRAME_KIND.responseBody, attempt.received, bytes);
        },
      },
      { offset: call.offset, head: call.head ?? toldHead(attempt, call) },
    );
    one.upload = upload;
    try {
      await upload.taken;
    } finally {
      if (one.upload === upload) one.upload = null;
    }
    return {
      acked_offset: attempt.received,
      window: STREAM_WINDOW_BYTES - (attempt.received - attempt.credited),
    };
  }

  function takeHead(of: AttemptName, one: Held, { status, headers }: HttpHead): void {
    if (one.status !== null) return;
    const failure = judgeAnswer(status, headers);
    if (failure !== undefined) {
      const { unhealthy: _ours, ...said } = failure;
      // Refused below, with the reason, and not by the end of its attempt.
      one.upload = null;
      result({ type: 'job.failed', ...of, ...said });
      throw new FlotillaError(
        'conflict',
        `${failure.message} This attempt is over, and the job goes elsewhere.`,
      );
    }
    one.status = status;
    const is_stream = headers['content-type']?.toLowerCase().startsWith('text/event-stream') === true;
    if (status < 300) one.usage = is_stream ? new SseScan({ check_json: true }) : new BodyUsage();
    frame(one.attempt, FRAME_KIND.responseHead, 0, Buffer.from(JSON.stringify({ status, headers })));
  }

  function complete(of: AttemptName, told: ToldUsage | undefined): { outcome: Outcome } {
    called();
    const one = held.get(keyOf(of));
    if (one?.upload) throw new FlotillaError('conflict', 'A call that sends its output is still open.');
    if (one === undefined) {
      if (completed.has(keyOf(of))) return { outcome: 'duplicate' };
      return result({ type: 'job.completed', ...of, result: { status: 0, length: 0 }, usage: tokens({}) });
    }
    const { attempt, status } = one;
    if (one.usage instanceof SseScan) {
      one.usage.finish();
      if (one.usage.error !== undefined || one.usage.unsound) {
        const message =
          one.usage.error === undefined
            ? 'The backend sent an event that is not JSON.'
            : 'The backend reported an error in its stream.';
        return result({ type: 'job.failed', ...of, code: 'backend_error', message, retryable: true });
      }
    }
    frame(attempt, FRAME_KIND.end, attempt.received, Uint8Array.of(END_OUTCOME.complete));
    const ended = result({
      type: 'job.completed',
      ...of,
      result: { status: status ?? 0, length: attempt.received },
      usage: usageOf(one, told),
    });
    if (ended.outcome === 'accepted') remember(keyOf(of));
    return ended;
  }

  function remember(key: string): void {
    completed.add(key);
    if (completed.size <= COMPLETED_MOST) return;
    for (const oldest of completed) return void completed.delete(oldest);
  }

  /** The connection answers a result within the call. */
  function result(message: NodeMessageOf<'job.completed' | 'job.failed'>): { outcome: Outcome } {
    outcome = 'stale';
    events.message(message);
    return { outcome };
  }

  function frame(attempt: Attempt, kind: FrameKind, offset: number, payload: Uint8Array): void {
    events.frame({ kind, stream: attempt.stream, offset, payload }, attempt);
  }
}

/** As the answer tells it, else as the node does, else from lengths. */
function usageOf({ attempt, status, usage }: Held, told: ToldUsage | undefined): TokenUsage {
  const found = usage instanceof SseScan ? usage.usage : usage?.usage();
  if (found !== undefined) return found;
  if (told !== undefined) return tokens(told);
  if (status === null || status >= 300) return tokens({});
  const content_bytes = usage instanceof SseScan ? usage.content_bytes : attempt.received;
  return estimateUsage(attempt.body.byteLength, content_bytes);
}

function tokens({ prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0 }: ToldUsage) {
  return { prompt_tokens, completion_tokens, cached_tokens, estimated: false };
}

function toldHead(attempt: Attempt, { status, content_type }: NodeOutput): HttpHead {
  const asked = attempt.job.request.streaming && status < 300 ? 'text/event-stream' : 'application/json';
  return { status, headers: { 'content-type': content_type ?? asked } };
}

function isOver(attempt: Attempt): boolean {
  return attempt.phase === 'over' || attempt.job.current !== attempt;
}

function over(): FlotillaError {
  return new FlotillaError('conflict', 'This attempt is over, or never was this node’s: stop its work.');
}

function keyOf({ job, attempt }: AttemptName): string {
  return slotKey(job, attempt);
}

/** What a call to a session that has ended is told. */
function farewell(code: number, message = 'it was closed'): FlotillaError {
  switch (code) {
    case CLOSE.revoked:
      return new FlotillaError('revoked', message);
    case CLOSE.superseded:
    case CLOSE.nodeInUse:
      return new FlotillaError('node_in_use', message);
    case CLOSE.goingAway:
    case CLOSE.tryLater:
      return new FlotillaError('unavailable', 'This control plane is stopping; register anew in a moment.');
    default:
      return new FlotillaError('wrong_session', `This session has ended (${message}); register anew.`);
  }
}
