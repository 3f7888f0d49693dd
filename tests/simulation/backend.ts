import type { HttpAgent, HttpAsk, HttpCalls, HttpControl } from '@flotilla/core';
import type { Chance } from './chance.ts';
import type { Machine, Process } from './machine.ts';

/** One request that a model server was asked, and what it answers. No two answers are alike. */
export interface Call {
  readonly id: number;
  /** The client's, which names the work. */
  readonly request_id: string;
  readonly node: string;
  readonly machine: string;
  /** The attempt that asked, by its node's word. */
  readonly attempt: number;
  readonly process: Process;
  /** As a client has it that did not ask for usage, and as one that did. */
  readonly answers: readonly string[];
  readonly began_ms: number;
  ended_ms: number | null;
}

/** How a server takes the next request. */
export type Mood = 'well' | (typeof MOODS)[number];
export const MOODS = [
  'refuses',
  'fails',
  'busy',
  'resets',
  'hangs',
  'falls silent',
  'ends early',
  'says error',
] as const;

/** A model server on a node's machine. It works on while nobody reads, and sleeps when its machine does. */
export class Backend {
  /** Of calls to come. */
  mood: Mood = 'well';
  /** How many times slower than a quick one. */
  slow: number;
  readonly #flakiness: () => number;
  readonly open = new Set<Call>();
  readonly #machine: Machine;
  readonly #chance: Chance;
  readonly #node: string;
  readonly #began: (call: Call) => void;
  readonly #nextId: () => number;

  constructor(deps: {
    machine: Machine;
    chance: Chance;
    node: string;
    nextId: () => number;
    began: (call: Call) => void;
    pace: number;
    /** How likely a call goes wrong by itself. */
    flakiness: () => number;
  }) {
    this.#machine = deps.machine;
    this.#chance = deps.chance;
    this.#node = deps.node;
    this.#nextId = deps.nextId;
    this.#began = deps.began;
    this.slow = deps.pace;
    this.#flakiness = deps.flakiness;
  }

  /** The way to it for one process. @param attempt of the work that is being asked for */
  agentOf(process: Process, attempt: () => number): HttpAgent & { destroy(): Promise<void> } {
    const calls = new Set<() => void>();
    process.onDeath(() => {
      for (const end of calls) end();
    });
    return {
      dispatch: (ask, heard) => {
        this.#serve(process, attempt(), ask, heard, calls);
        return true;
      },
      destroy: async () => {
        for (const end of calls) end();
      },
    };
  }

  #serve(process: Process, attempt: number, ask: HttpAsk, heard: HttpCalls, calls: Set<() => void>): void {
    const { scheduler, history } = this.#machine.nature;
    const chance = this.#chance;
    const mood = this.mood === 'well' && chance.happens(this.#flakiness()) ? chance.pick(MOODS) : this.mood;
    const request_id = ask.headers[ask.headers.indexOf('x-request-id') + 1]!;
    const body = JSON.parse(ask.body!.toString()) as Asked;
    const id = this.#nextId();
    const answer = answerOf(id, body, chance);
    const call: Call = {
      id,
      request_id,
      node: this.#node,
      machine: this.#machine.name,
      attempt,
      process,
      answers: [...new Set([answer.bare, answer.whole])],
      began_ms: scheduler.now_ms,
      ended_ms: null,
    };
    const refused = mood === 'refuses';
    const end = () => {
      if (call.ended_ms !== null) return;
      call.ended_ms = scheduler.now_ms;
      calls.delete(end);
      if (refused) return;
      this.open.delete(call);
      history.add(this.#node, `the backend ends call ${id}`);
    };
    calls.add(end);
    let paused = false;
    let waiting: (() => void) | null = null;
    const control: HttpControl = {
      abort: () => end(),
      pause: () => (paused = true),
      resume() {
        paused = false;
        const go = waiting;
        waiting = null;
        if (go !== null) process.arrives(scheduler.now_ms, go);
      },
    };
    /** The machine's own time: a server on it sleeps with it. */
    const then = (in_ms: number, run: () => void) => {
      const arrived = () => {
        if (call.ended_ms !== null) return;
        if (paused) waiting = arrived;
        else run();
      };
      process.arrives(scheduler.now_ms + in_ms, arrived);
    };
    if (refused) {
      const error = Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' });
      then(0.2, () => {
        end();
        heard.onResponseError(control, error);
      });
      return;
    }
    this.open.add(call);
    history.add(this.#node, `the backend is asked by ${process.name}: call ${id}`, {
      request_id,
      attempt,
      mood,
    });
    this.#began(call);
    const fail = (code: string) => {
      end();
      heard.onResponseError(control, Object.assign(new Error(code), { code }));
    };
    const first_ms = this.slow * chance.delay(2, 1500);
    then(0.2, () => {
      heard.onRequestStart(control);
      if (mood === 'hangs') return;
      then(first_ms, () => {
        if (mood === 'resets') return fail('ECONNRESET');
        const status = mood === 'fails' ? 500 : mood === 'busy' ? 429 : 200;
        heard.onResponseStart(control, status, { 'content-type': answer.type });
        const pieces = cut(status === 200 ? answer.whole : '{"error":{"message":"no"}}', chance);
        const stop_at =
          mood === 'falls silent' || mood === 'ends early' ? chance.whole(0, pieces.length - 1) : -1;
        const next = (at: number) => {
          if (at === pieces.length) {
            end();
            return heard.onResponseEnd();
          }
          if (at === stop_at) {
            if (mood === 'falls silent') return;
            end();
            return heard.onResponseEnd();
          }
          if (mood === 'says error' && body.stream === true && at === 1) {
            heard.onResponseData(control, Buffer.from('\n\ndata: {"error":{"message":"no"}}\n\n'));
            end();
            return heard.onResponseEnd();
          }
          heard.onResponseData(control, Buffer.from(pieces[at]!));
          then(this.slow * chance.delay(0.5, 400), () => next(at + 1));
        };
        next(0);
      });
    });
  }
}

interface Asked {
  stream?: boolean;
  stream_options?: { include_usage?: boolean };
  max_tokens?: number;
}

interface Answered {
  type: string;
  whole: string;
  /** Without the event that tells what it has cost. */
  bare: string;
}

function answerOf(call: number, { stream, stream_options, max_tokens = 4 }: Asked, chance: Chance): Answered {
  const words = Array.from(
    { length: max_tokens },
    (_, at) => `${call}.${at}${chance.happens(0.1) ? ' ä' : ' '}`,
  );
  const usage = { prompt_tokens: 3, completion_tokens: words.length, total_tokens: 3 + words.length };
  if (stream !== true) {
    const choices = [
      { index: 0, message: { role: 'assistant', content: words.join('') }, finish_reason: 'stop' },
    ];
    const whole = JSON.stringify({ id: `call-${call}`, object: 'chat.completion', choices, usage });
    return { type: 'application/json', whole, bare: whole };
  }
  const chunk = (delta: object, finish_reason: string | null) =>
    `data: ${JSON.stringify({ id: `call-${call}`, choices: [{ index: 0, delta, finish_reason }] })}\n\n`;
  const said = [...words.map((content) => chunk({ content }, null)), chunk({}, 'stop')].join('');
  const told =
    stream_options?.include_usage === true ? `data: ${JSON.stringify({ choices: [], usage })}\n\n` : '';
  return {
    type: 'text/event-stream',
    whole: `${said}${told}data: [DONE]\n\n`,
    bare: `${said}data: [DONE]\n\n`,
  };
}

/** Wherever a network may cut it. */
function cut(text: string, chance: Chance): string[] {
  const pieces: string[] = [];
  const most = Math.ceil(text.length / chance.whole(1, 6));
  for (let from = 0; from < text.length; ) {
    const length = chance.whole(1, most);
    pieces.push(text.slice(from, from + length));
    from += length;
  }
  return pieces;
}
