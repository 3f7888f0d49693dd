import { EventEmitter } from 'node:events';
import { FlotillaError } from '@flotilla/protocol';
import type {
  ConnectionEvents,
  ConnectionOptions,
  LinkConnection,
} from '../../packages/daemon/src/link/connection.ts';
import type { Ending } from '../../packages/daemon/src/link/refusal.ts';
import type { Chance } from './chance.ts';
import type { Nature, Process } from './machine.ts';

/**
 * The lines between nodes and control planes. A connection keeps its order and loses nothing while it stands; what goes wrong
 * with it is what goes wrong with TCP: it breaks at both ends, or at neither (what is sent then is gone, and no one is
 * told), it stands still for a while, it is slow.
 */
export interface Line {
  /** Until then nothing passes; what was sent passes afterwards. */
  stalled_until_ms: number;
  slow_ms: number;
}

/** What takes connections at an address. */
export interface Listener {
  readonly process: Process;
  /** @throws FlotillaError: refused in HTTP */
  accept(credential: string): Accepted;
}

interface Accepted {
  join(socket: ControlSocket): void;
  /** The node has been heard of, at this time by the control plane's clock. */
  heard(now_ms: number): void;
}

type Item = string | Buffer | { ping: true } | { pong: true } | Closing | { gone: true };
interface Closing {
  code: number;
  reason: string;
}

const LATENCY_LEAST_MS = 0.5;
const LATENCY_MOST_MS = 60;

export class Network {
  /** For a bug that is planted there: whether a control plane does not get this message of a node. */
  swallows: (text: string) => boolean = () => false;
  readonly #nature: Nature;
  readonly #chance: Chance;
  readonly #listeners = new Map<string, Listener>();
  readonly #lines = new Map<string, Line>();
  readonly #open = new Map<string, Set<Connection>>();

  constructor(nature: Nature, chance: Chance) {
    this.#nature = nature;
    this.#chance = chance;
  }

  listen(address: string, listener: Listener): void {
    this.#listeners.set(address, listener);
    listener.process.onDeath(() => {
      if (this.#listeners.get(address) === listener) this.#listeners.delete(address);
    });
  }

  deaf(address: string): void {
    this.#listeners.delete(address);
  }

  line(node: string, address: string): Line {
    const name = `${node} ${address}`;
    const known = this.#lines.get(name) ?? { stalled_until_ms: 0, slow_ms: 0 };
    this.#lines.set(name, known);
    return known;
  }

  /** Breaks what is connected, so that both ends are told. */
  cut(node: string, address: string): void {
    for (const connection of this.#opened(node, address)) connection.break();
  }

  /** The same, and neither end is told. */
  sever(node: string, address: string): void {
    for (const connection of this.#opened(node, address)) connection.sever();
  }

  dial(
    from: { name: string; process: Process; sent: (text: string) => void },
    { control_url, credential, connect_timeout_ms }: ConnectionOptions,
    events: ConnectionEvents,
  ): LinkConnection {
    const address = new URL(control_url).hostname;
    const line = this.line(from.name, address);
    const { scheduler, history } = this.#nature;
    const end = new NodeEnd(from.process, events, (text) => {
      from.sent(text);
      history.add(from.process.name, `→ ${address} ${text}`);
    });
    const latency = () => this.#latency(line);
    const arrives_ms = Math.max(scheduler.now_ms, line.stalled_until_ms) + latency();
    // Who takes connections may be cut off, stand still, or die meanwhile.
    from.process.clock.after(connect_timeout_ms, () => end.giveUp());
    scheduler.at(arrives_ms, () => {
      const listener = this.#listeners.get(address);
      if (listener === undefined) {
        return end.fail(latency(), { error: 'The control plane refused the connection.' });
      }
      listener.process.arrives(scheduler.now_ms, () => {
        let accepted: Accepted;
        try {
          accepted = listener.accept(credential);
        } catch (error) {
          if (!(error instanceof FlotillaError)) throw error;
          return end.fail(latency(), {
            http_status: error.status,
            http_error: { code: error.code, message: error.message },
          });
        }
        const connection = new Connection(this, this.#nature, end, listener.process, accepted, line, latency);
        const opened = this.#opened(from.name, address);
        opened.add(connection);
        connection.over = () => opened.delete(connection);
        history.add(address, `accepts a connection of ${from.name}`);
        accepted.join(connection.control);
      });
    });
    return end;
  }

  #opened(node: string, address: string): Set<Connection> {
    const name = `${node} ${address}`;
    const known = this.#open.get(name) ?? new Set();
    this.#open.set(name, known);
    return known;
  }

  #latency({ slow_ms }: Line): number {
    return slow_ms + this.#chance.delay(LATENCY_LEAST_MS, LATENCY_MOST_MS);
  }
}

/** A connection as the two ends share it. */
class Connection {
  readonly control: ControlSocket;
  readonly #to_node: Direction;
  readonly #to_control: Direction;
  over: () => void = () => undefined;

  constructor(
    network: Network,
    nature: Nature,
    node: NodeEnd,
    process: Process,
    accepted: Accepted,
    line: Line,
    latency: () => number,
  ) {
    this.#to_node = new Direction(nature, line, latency, node.process, (items) => node.take(items));
    this.#to_control = new Direction(nature, line, latency, process, (items) => this.control.take(items));
    this.control = new ControlSocket(this.#to_node, process, accepted, network, () => this.over());
    node.connected(this.#to_control);
    // The kernel closes what a process leaves open.
    process.onDeath(() => this.#to_node.send({ gone: true }));
    node.process.onDeath(() => this.#to_control.send({ gone: true }));
  }

  break(): void {
    this.#to_node.send({ gone: true });
    this.#to_control.send({ gone: true });
    this.sever();
  }

  sever(): void {
    this.#to_node.end();
    this.#to_control.end();
  }
}

/** What one end sends to the other: in order, and what is sent at one moment arrives at one moment. */
class Direction {
  readonly #nature: Nature;
  readonly #line: Line;
  readonly #latency: () => number;
  readonly #to: Process;
  readonly #take: (items: Item[]) => void;
  #last_ms = 0;
  #batch: Item[] = [];
  #batch_ms = -1;
  #ended = false;

  constructor(nature: Nature, line: Line, latency: () => number, to: Process, take: (items: Item[]) => void) {
    this.#nature = nature;
    this.#line = line;
    this.#latency = latency;
    this.#to = to;
    this.#take = take;
  }

  send(item: Item): void {
    if (this.#ended) return;
    const { scheduler } = this.#nature;
    if (this.#batch_ms === scheduler.now_ms) {
      this.#batch.push(item);
      return;
    }
    const batch = [item];
    this.#batch = batch;
    this.#batch_ms = scheduler.now_ms;
    this.#last_ms = Math.max(this.#last_ms, scheduler.now_ms + this.#latency());
    this.#deliver(this.#last_ms, batch);
  }

  /** Nothing that is sent from now on arrives. */
  end(): void {
    this.#ended = true;
  }

  #deliver(at_ms: number, batch: Item[]): void {
    const { scheduler } = this.#nature;
    scheduler.at(at_ms, () => {
      const { stalled_until_ms } = this.#line;
      if (scheduler.now_ms < stalled_until_ms) {
        this.#last_ms = Math.max(this.#last_ms, stalled_until_ms);
        return this.#deliver(stalled_until_ms, batch);
      }
      this.#to.arrives(scheduler.now_ms, () => this.#take(batch));
    });
  }
}

/** The node's end, as its session uses it. */
class NodeEnd implements LinkConnection {
  readonly process: Process;
  readonly #events: ConnectionEvents;
  readonly #sent: (text: string) => void;
  #out: Direction | null = null;
  #ending: Ending = {};
  #state: 'dialling' | 'open' | 'closing' | 'ended' = 'dialling';

  constructor(process: Process, events: ConnectionEvents, sent: (text: string) => void) {
    this.process = process;
    this.#events = events;
    this.#sent = sent;
  }

  get open(): boolean {
    return this.#state === 'open';
  }

  connected(out: Direction): void {
    this.#out = out;
    // It was given up meanwhile.
    if (this.#state !== 'dialling') return out.send({ gone: true });
    this.#soon(() => {
      if (this.#state !== 'dialling') return;
      this.#state = 'open';
      this.#events.opened();
    });
  }

  giveUp(): void {
    if (this.#state === 'dialling') this.drop('The connection failed: Opening handshake has timed out');
  }

  fail(in_ms: number, ending: Ending): void {
    const { scheduler } = this.process.machine.nature;
    this.process.arrives(scheduler.now_ms + in_ms, () => {
      if (this.#state !== 'dialling') return;
      this.#ending = { ...this.#ending, ...ending };
      this.#end();
    });
  }

  take(items: Item[]): void {
    for (const item of items) {
      if (this.#state === 'ended') return;
      // Its handshake's answer came in the same moment.
      if (this.#state === 'dialling') {
        this.#state = 'open';
        this.#events.opened();
      }
      if (typeof item === 'string') this.#events.text(item);
      else if (Buffer.isBuffer(item)) this.#events.frame(item);
      else if ('ping' in item) this.#out!.send({ pong: true });
      else if ('code' in item) {
        this.#ending.close_code ??= item.code;
        this.#ending.close_reason ??= item.reason;
        this.#out!.send(item);
        this.#end();
      } else if ('gone' in item) {
        this.#ending.close_code ??= 1006;
        this.#end();
      }
    }
  }

  sendText(text: string): void {
    if (!this.open) return;
    this.#sent(text);
    this.#out!.send(text);
  }

  sendBinary(header: Uint8Array, payload: Uint8Array): void {
    if (this.open) this.#out!.send(Buffer.concat([header, payload]));
  }

  noteError(code: string, message: string): void {
    this.#ending.said = { code, message };
  }

  close(code: number, reason: string): void {
    if (this.#state === 'dialling') return this.drop(reason);
    if (this.#state !== 'open') return;
    this.#state = 'closing';
    this.#out!.send({ code, reason });
    this.process.clock.after(CLOSE_TIMEOUT_MS, () => this.#terminate());
  }

  drop(reason: string): void {
    if (this.#state === 'ended') return;
    this.#ending.error = reason;
    this.#terminate();
  }

  #terminate(): void {
    if (this.#state === 'ended') return;
    this.#state = 'closing';
    this.#out?.send({ gone: true });
    this.#soon(() => {
      this.#ending.close_code ??= 1006;
      this.#end();
    });
  }

  #soon(run: () => void): void {
    this.process.arrives(this.process.machine.nature.scheduler.now_ms, run);
  }

  #end(): void {
    if (this.#state === 'ended') return;
    this.#state = 'ended';
    this.#events.ended(this.#ending);
  }
}

const CLOSE_TIMEOUT_MS = 1000;

/** The control plane's end, with the surface of a `WebSocket` that a link uses. */
class ControlSocket extends EventEmitter {
  readonly OPEN = 1;
  readonly bufferedAmount = 0;
  readyState = 1;
  readonly #out: Direction;
  readonly #process: Process;
  readonly #accepted: Accepted;
  readonly #network: Network;
  readonly #over: () => void;
  #registered_ms = 0;

  constructor(out: Direction, process: Process, accepted: Accepted, network: Network, over: () => void) {
    super();
    this.#out = out;
    this.#process = process;
    this.#accepted = accepted;
    this.#network = network;
    this.#over = over;
  }

  send(data: string | Buffer): void {
    if (this.readyState !== this.OPEN) return;
    if (typeof data === 'string') {
      this.#process.log.debug({ data }, '→ node');
      if (data.startsWith('{"type":"node.registered"')) this.#accepted.heard(this.#registered_ms);
    }
    this.#out.send(data);
  }

  ping(): void {
    if (this.readyState === this.OPEN) this.#out.send({ ping: true });
  }

  close(code: number, reason: string): void {
    if (this.readyState !== this.OPEN) return;
    this.readyState = 2;
    this.#out.send({ code, reason });
  }

  terminate(): void {
    if (this.readyState === 3) return;
    this.#out.send({ gone: true });
    queueMicrotask(() => this.#closed(1006, ''));
  }

  take(items: Item[]): void {
    for (const item of items) {
      if (this.readyState === 3) return;
      if (typeof item === 'string') {
        this.#note(item);
        if (!this.#network.swallows(item)) this.emit('message', Buffer.from(item), false);
      } else if (Buffer.isBuffer(item)) this.emit('message', item, true);
      else if ('pong' in item) this.emit('pong');
      else if ('code' in item) {
        if (this.readyState === this.OPEN) this.#out.send(item);
        this.#closed(item.code, item.reason);
      } else if ('gone' in item) this.#closed(1006, '');
    }
  }

  #note(text: string): void {
    const now_ms = this.#process.clock.now_ms();
    if (text.startsWith('{"type":"node.register"')) this.#registered_ms = now_ms;
    else if (text.startsWith('{"type":"node.heartbeat"') && this.readyState === this.OPEN) {
      this.#accepted.heard(now_ms);
    }
  }

  #closed(code: number, reason: string): void {
    if (this.readyState === 3) return;
    this.readyState = 3;
    this.#over();
    this.emit('close', code, Buffer.from(reason));
  }
}
