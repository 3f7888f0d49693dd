import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import { Outbox, OutStream, received, type ReceiveWindow, receiveWindow } from '@flotilla/core';
import {
  type ControlMessageOf,
  decodeFrame,
  END_OUTCOME,
  FRAME_KIND,
  type NodeMessage,
  type NodeMessageOf,
  readInventory,
  readNodeMessage,
  type Verdict,
} from '@flotilla/protocol';
import { type WebSocket, WebSocketServer } from 'ws';

/**
 * A control plane's end of the node link for tests: a real WebSocket server that does what the test says. It answers
 * registrations and beats and acknowledges what it receives, each unless told not to, and records the rest.
 */
export class SeenStream {
  head: { status: number; headers: Record<string, string> } | null = null;
  heads = 0;
  end: { length: number; complete: boolean } | null = null;
  /** Frames that repeated or left out a byte. */
  gaps = 0;
  length = 0;
  #pieces: Buffer[] = [];

  get body(): Buffer {
    const whole = Buffer.concat(this.#pieces);
    this.#pieces = [whole];
    return whole;
  }

  add(bytes: Uint8Array): void {
    this.#pieces.push(Buffer.from(bytes));
    this.length += bytes.byteLength;
  }
}

export interface OfferOptions {
  owner?: string;
  attempt?: number;
  body?: string | Buffer;
  backend?: string;
  streaming?: boolean;
  add_usage?: boolean;
  operation?: ControlMessageOf<'job.offer'>['operation'];
  kind?: ControlMessageOf<'job.offer'>['kind'];
  deadlines?: Partial<ControlMessageOf<'job.offer'>['deadlines']>;
  /** Send the offer, and leave the body to the test. */
  without_body?: boolean;
  body_length?: number;
}

type Messages = { [T in NodeMessage['type']]: NodeMessageOf<T> };

export class ScriptedControl {
  heartbeat_ms = 1000;
  ack_beats = true;
  ack_link = true;
  ack_results = true;
  /** Body bytes are acknowledged as they come; false: only `credit` does. */
  credit_streams = true;
  /** How the next upgrades are refused. */
  refuse: { status: number; body?: string } | null = null;
  answer_registration = true;
  verdicts: (item: NodeMessageOf<'node.register'>['inventory'][number]) => Partial<Verdict> = () => ({
    verdict: 'abandon',
  });
  want: string[] = [];
  /** What acknowledgements renew, where that is less than all. */
  renews: 'attached' | undefined;
  drain_ms: number | undefined;

  readonly registrations: NodeMessageOf<'node.register'>[] = [];
  readonly log: NodeMessage[] = [];
  readonly streams = new Map<number, SeenStream>();
  readonly authorizations: (string | undefined)[] = [];
  connections = 0;
  socket: WebSocket | null = null;
  outbox: Outbox | null = null;
  wire_bytes = 0;
  /** Reads of the socket that brought each message, to see what came together. */
  reads: number[] = [];
  #reads = 0;
  #tcp: Duplex | null = null;
  #epoch = 0;
  #next_stream = 1;
  #window: ReceiveWindow = receiveWindow();
  readonly #server: Server = createServer();
  readonly #sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false });
  readonly #waiting = new Set<() => void>();

  async listen(port = 0): Promise<void> {
    this.#server.on('upgrade', (request, socket, head) => {
      this.authorizations.push(request.headers.authorization);
      socket.on('error', () => undefined);
      const { refuse } = this;
      this.connections++;
      if (refuse !== null) {
        const body = refuse.body ?? '';
        socket.end(
          `HTTP/1.1 ${refuse.status} Refused\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
        );
        this.#wake();
        return;
      }
      this.#sockets.handleUpgrade(request, socket, head, (ws) => {
        this.#tcp = socket;
        socket.on('data', () => this.#reads++);
        this.#accept(ws);
      });
    });
    await new Promise<void>((resolve) => this.#server.listen(port, '127.0.0.1', resolve));
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  async close(): Promise<void> {
    for (const ws of this.#sockets.clients) ws.terminate();
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  /** Resolves as soon as `holds` does, looking again at whatever happens here. */
  async until(holds: () => boolean, what = holds.toString()): Promise<void> {
    if (holds()) return;
    await new Promise<void>((resolve, reject) => {
      const stop = () => {
        clearTimeout(timer);
        this.#waiting.delete(look);
      };
      const look = () => {
        if (!holds()) return;
        stop();
        resolve();
      };
      const timer = setTimeout(() => {
        stop();
        const tail = JSON.stringify(this.log.slice(-5));
        reject(new Error(`Never came true: ${what}. Last messages: ${tail}`));
      }, 10_000);
      this.#waiting.add(look);
    });
  }

  /** Call when something outside has changed that a wait may depend on. */
  nudge(): void {
    this.#wake();
  }

  all<T extends NodeMessage['type']>(type: T, job?: string): Messages[T][] {
    return this.log.filter(
      (message) => message.type === type && (job === undefined || (message as { job?: string }).job === job),
    ) as Messages[T][];
  }

  async message<T extends NodeMessage['type']>(type: T, job?: string, count = 1): Promise<Messages[T]> {
    await this.until(() => this.all(type, job).length >= count, `${count} × ${type} ${job ?? ''}`);
    return this.all(type, job)[count - 1]!;
  }

  send(message: object): void {
    this.socket?.send(JSON.stringify(message));
  }

  /** Offers a job and sends its body. @returns its stream */
  offer(job: string, options: OfferOptions = {}): number {
    const stream = this.#next_stream++;
    const body = Buffer.from(options.body ?? '{"model":"m","messages":[]}');
    this.#tcp?.cork();
    this.send({
      type: 'job.offer',
      job,
      attempt: options.attempt ?? 1,
      owner: options.owner ?? 'rep_1',
      stream,
      kind: options.kind ?? 'inference',
      operation: options.operation ?? 'chat',
      backend: options.backend ?? 'main',
      model: 'm',
      streaming: options.streaming ?? false,
      add_usage: options.add_usage ?? false,
      body_length: options.body_length ?? body.length,
      deadlines: { run_ms: 60_000, first_byte_ms: 30_000, idle_ms: 30_000, ...options.deadlines },
      request_id: `req-${job}`,
    });
    if (options.without_body !== true) this.sendBody(stream, body);
    this.#tcp?.uncork();
    return stream;
  }

  sendBody(stream: number, body: string | Buffer): void {
    const out = new OutStream({ kind: FRAME_KIND.requestBody });
    this.outbox?.attach(stream, out, { acked_offset: 0, head_received: true });
    out.push(Buffer.from(body));
    out.end('complete');
  }

  /** A stream number on this connection, for a verdict. */
  newStream(): number {
    return this.#next_stream++;
  }

  stream(number: number): SeenStream {
    let seen = this.streams.get(number);
    if (seen === undefined) {
      seen = new SeenStream();
      this.streams.set(number, seen);
    }
    return seen;
  }

  /** A stream that goes on under a new number, after the bytes that came before. */
  continueStream(number: number, body: Buffer): void {
    this.stream(number).add(body);
  }

  credit(stream: number, acked_offset: number): void {
    this.send({ type: 'stream.credit', stream, acked_offset });
  }

  #accept(ws: WebSocket): void {
    this.socket = ws;
    this.#window = receiveWindow();
    const port = {
      sendText: (text: string) => ws.send(text),
      sendBinary: (header: Uint8Array, payload: Uint8Array) => ws.send(Buffer.concat([header, payload])),
    };
    this.outbox = new Outbox(port, () => performance.now());
    ws.on('error', () => undefined);
    ws.on('close', () => this.#wake());
    ws.on('message', (data: Buffer, binary) => {
      this.reads.push(this.#reads);
      if (binary) this.#frame(ws, data);
      else this.#text(data.toString('utf8'));
      this.#wake();
    });
    this.#wake();
  }

  #text(text: string): void {
    const read = readNodeMessage(text);
    if (!read.ok) throw new Error(`The node sent what cannot be read: ${read.error.message}`);
    const { message } = read;
    this.log.push(message);
    if (message.type === 'node.register') {
      this.registrations.push(message);
      if (this.answer_registration) this.register(message);
    } else if (message.type === 'node.heartbeat' && this.ack_beats) {
      this.send({
        type: 'node.heartbeat.ack',
        seq: message.seq,
        server_time: new Date().toISOString(),
        epoch: this.#epoch,
        desired: { cordoned: false, ...(this.drain_ms === undefined ? {} : { drain_ms: this.drain_ms }) },
        want: this.want.splice(0),
        ...(this.renews !== undefined && { renews: this.renews }),
      });
    } else if (message.type === 'inventory.sync') {
      this.send({ type: 'inventory.verdicts', verdicts: this.#judge(readInventory(message.inventory)) });
    } else if ((message.type === 'job.completed' || message.type === 'job.failed') && this.ack_results) {
      const { job, attempt } = message;
      this.send({ type: 'result.ack', job, attempt, outcome: 'accepted' });
    } else if (message.type === 'stream.credit') this.outbox?.credit(message.stream, message.acked_offset);
    else if (message.type === 'link.ack') this.outbox?.linkAck(message.received, 5000);
  }

  register(message: NodeMessageOf<'node.register'>): void {
    this.send({
      type: 'node.registered',
      node_id: 'node_1',
      name: 'tester',
      epoch: ++this.#epoch,
      server_time: new Date().toISOString(),
      heartbeat_ms: this.heartbeat_ms,
      lease_ttl_ms: 3 * this.heartbeat_ms,
      protocol: 1,
      verdicts: this.#judge(message.inventory),
    });
  }

  #judge(inventory: NodeMessageOf<'node.register'>['inventory']): Verdict[] {
    return inventory.map((item) => ({
      job: item.job,
      attempt: item.attempt,
      verdict: 'abandon' as const,
      ...this.verdicts(item),
    }));
  }

  #frame(ws: WebSocket, data: Buffer): void {
    this.wire_bytes += data.length;
    const frame = decodeFrame(data);
    const seen = this.stream(frame.stream);
    if (frame.kind === FRAME_KIND.responseHead) {
      seen.heads++;
      seen.head = JSON.parse(Buffer.from(frame.payload).toString()) as SeenStream['head'];
    } else if (frame.kind === FRAME_KIND.responseBody) {
      if (frame.offset !== seen.length) seen.gaps++;
      seen.add(frame.payload);
      if (this.credit_streams && seen.length % 65_536 < frame.payload.length) {
        this.credit(frame.stream, seen.length);
      }
    } else if (frame.kind === FRAME_KIND.end) {
      seen.end = { length: frame.offset, complete: frame.payload[0] === END_OUTCOME.complete };
    }
    const next = received(this.#window, data.length);
    this.#window = next.window;
    if (this.ack_link && next.ack !== undefined) {
      ws.send(JSON.stringify({ type: 'link.ack', received: next.ack }));
    }
  }

  #wake(): void {
    for (const look of this.#waiting) look();
  }
}
