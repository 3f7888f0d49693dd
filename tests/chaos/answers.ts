import type { ServerResponse } from 'node:http';
import { setTimeout as pause } from 'node:timers/promises';
import { DONE, SSE, type SeenRequest, chatAnswer, chatChunk } from '../support/scripted-backend.ts';
import type { History, Work } from './history.ts';

/**
 * What the backends of the suite say: each answer tells the number that its request carries and the run it is from, so
 * it can be seen whose it is, and that no two were mixed.
 */
export const MODELS = { job: 'numbered', whole: 'numbered', stream: 'streamed' } as const satisfies Record<
  Work,
  string
>;
const EVENTS = 30;

/** Of one request to a backend: counted over all of them. */
export function sayingOf(number: number, run: number): string {
  return `Number ${number}, run ${run}.`;
}

/** A whole stream of that run. */
export function streamOf(number: number, run: number): string {
  return eventsOf(number, run).join('') + DONE;
}

function eventsOf(number: number, run: number): string[] {
  // Frames and windows are met at other places each time.
  const padding = 'z'.repeat([10, 100, 1500][number % 3]!);
  return Array.from({ length: EVENTS }, (_, place) =>
    chatChunk(`${sayingOf(number, run)} ${place} ä${padding}`),
  );
}

/** The request of that number, as its backend reads it again. */
export function requestOf(work: Work, number: number): { messages: { role: string; content: string }[] } {
  return { messages: [{ role: 'user', content: `${work} ${number}` }] };
}

export interface Pace {
  random: () => number;
  /** How long a job or a whole answer takes. */
  answer_ms: (random: () => number) => number;
}

/** Answers for all nodes, and writes down what is asked of each. */
export function scriptedAnswers(history: History, { random, answer_ms }: Pace) {
  let runs = 0;
  return (node: string) =>
    async ({ body }: SeenRequest, response: ServerResponse): Promise<void> => {
      const run = ++runs;
      const [work, text] = contentOf(body).split(' ') as [Work, string];
      const number = Number(text);
      history.add({ type: 'began', run, node, work, number });
      response.on('close', () => {
        const said = response.writableFinished ? sayingOf(number, run) : null;
        history.add({ type: 'ended', run, said });
      });
      if (work === 'stream') return stream(response, eventsOf(number, run));
      await pause(answer_ms(random));
      if (response.destroyed) return;
      response.writeHead(200, { 'content-type': 'application/json' });
      response.end(chatAnswer(sayingOf(number, run), MODELS[work]));
    };

  async function stream(response: ServerResponse, events: string[]): Promise<void> {
    response.writeHead(200, SSE);
    const gap_ms = 250 * random() ** 2;
    for (const event of events) {
      if (response.destroyed) return;
      response.write(event);
      await pause(gap_ms);
    }
    response.end(DONE);
  }
}

function contentOf(body: Buffer): string {
  return (JSON.parse(body.toString()) as { messages: { content: string }[] }).messages[0]!.content;
}

/** What an answer of a backend says; null: it is none. */
export function saidIn(answer: unknown): string | null {
  const { choices } = (answer ?? {}) as { choices?: { message?: { content?: string } }[] };
  return choices?.[0]?.message?.content ?? null;
}
