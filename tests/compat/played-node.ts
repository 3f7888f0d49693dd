import assert from 'node:assert/strict';
import { FRAME_KIND } from '@flotilla/protocol';
import { bodyOf, type RawLink } from '../support/raw-node.ts';
import { until } from '../support/until.ts';
import { frameOf, type Line, type Message } from './conversation.ts';
import { assertAlike, unlike } from './likeness.ts';

/** Said when time has come, not in answer to something. */
const BACKGROUND = new Set(['node.heartbeat', 'node.heartbeat.ack', 'stream.credit', 'link.ack']);
const BEAT_EVERY_MS = 200;

/**
 * The node of a recorded conversation, on a real link to today's control plane. It says what was recorded, at the
 * point where it was recorded, and expects there what it was told then. The ids are those of today.
 */
export class PlayedNode {
  readonly #link: RawLink;
  readonly #lines: Line[];
  readonly #as: (message: Message) => Message;
  readonly #known: Set<string>;
  readonly #jobs = new Map<string, string>();
  readonly #streams = new Map<number, number>();
  readonly #bodies = new Map<number, string>();
  readonly #open = new Set<string>();
  #heard = 0;

  constructor(link: RawLink, lines: Line[], as: (message: Message) => Message) {
    this.#link = link;
    this.#lines = lines;
    this.#as = as;
    const control = lines.flatMap((line) =>
      'message' in line && line.from === 'control' ? [line.message.type] : [],
    );
    this.#known = new Set(control);
  }

  /** Beats, with what was recorded of an idle moment, while nothing runs: what is played lasts no lease. */
  beats(): void {
    const beat = this.#lines.flatMap((line) =>
      'message' in line && line.message.type === 'node.heartbeat' && line.message['draining'] !== true
        ? [line.message]
        : [],
    );
    const idle = beat.at(-1)!;
    let seq = 0;
    const timer = setInterval(() => {
      if (this.#link.ws.readyState !== this.#link.ws.OPEN || this.#open.size > 0) return;
      this.#link.send(this.#as({ ...idle, seq: ++seq, progress_seq: seq }));
    }, BEAT_EVERY_MS);
    void this.#link.closed.then(() => clearInterval(timer));
  }

  /** One line of the link. */
  async play(line: Exclude<Line, { step: unknown }>): Promise<void> {
    if (line.from === 'node') return 'message' in line ? this.#say(line.message) : this.#send(line);
    return 'message' in line ? this.#hear(line.message) : this.#receive(line);
  }

  #say(message: Message): void {
    if (BACKGROUND.has(message.type)) return;
    const { job } = message;
    const today = typeof job === 'string' ? { ...message, job: this.#jobs.get(job) } : message;
    if (/^job\.(completed|failed|released)$/.test(message.type)) this.#open.delete(String(job));
    this.#link.send(this.#as(today));
  }

  #send(line: { kind: number; stream: number; offset: number; payload: string }): void {
    this.#link.ws.send(frameOf(line, this.#streams.get(line.stream)!));
  }

  async #hear(recorded: Message): Promise<void> {
    // How often it is told of its window is the control plane's to choose: 256 KiB go without.
    if (recorded.type === 'stream.credit') return;
    if (BACKGROUND.has(recorded.type)) {
      await until(`${recorded.type} is heard as it was`, () =>
        this.#link.heard.findLast(
          ({ type, ...rest }) => type === recorded.type && unlike(recorded, { type, ...rest }).length === 0,
        ),
      );
      return;
    }
    const today = (await until(`${recorded.type} is heard`, () => this.#next())) as unknown as Message;
    assertAlike(recorded, today);
    if (typeof recorded['job'] === 'string') this.#jobs.set(recorded['job'], String(today['job']));
    if (recorded.type !== 'job.offer') return;
    this.#streams.set(Number(recorded['stream']), Number(today['stream']));
    this.#open.add(String(recorded['job']));
  }

  /** The next message in turn. What the node of then does not know it answers with an error, and lives on. */
  #next(): Message | undefined {
    while (this.#heard < this.#link.heard.length) {
      const message = this.#link.heard[this.#heard++] as unknown as Message;
      if (BACKGROUND.has(message.type) || message.type === 'error') continue;
      if (this.#known.has(message.type)) return message;
      this.#link.send({
        type: 'error',
        code: 'invalid_request',
        message: `Unknown message type ${message.type}.`,
      });
    }
    return undefined;
  }

  /** The request's body comes in whatever pieces; at its end it is the one that was recorded. */
  async #receive({
    kind,
    stream,
    payload,
  }: {
    kind: number;
    stream: number;
    payload: string;
  }): Promise<void> {
    const today = this.#streams.get(stream)!;
    if (kind !== FRAME_KIND.end) {
      this.#bodies.set(stream, (this.#bodies.get(stream) ?? '') + payload);
      return;
    }
    const body = await until('the request has come', () => bodyOf(this.#link, today));
    assert.equal(body.toString(), this.#bodies.get(stream));
  }
}
