import type { IncomingMessage, ServerResponse } from 'node:http';
import { chatCompletion, chatStream, type Envelope, textCompletion, textStream } from './completion.ts';
import { embeddings } from './embedding.ts';
import type { Answer } from './answer.ts';
import type { Script } from './script.ts';

interface Bytes {
  head: string[];
  body: Buffer;
}
export type InstantAnswers = Record<'chat' | 'completions' | 'embeddings', { whole: Bytes; stream: Bytes }>;

/** Small answers as bytes, made once. Nothing of a request is parsed: only whether it asks for a stream is looked up. */
export function instantAnswers(model: string): InstantAnswers {
  const answer: Answer = {
    pieces: ['[simulated]', ' An', ' instant', ' answer', ' of', ' flotilla-sim.'],
    tool_call: null,
    finish_reason: 'stop',
    prompt_tokens: 1,
    completion_tokens: 6,
  };
  const envelope: Envelope = { id: 'sim-instant', model, created: 0, choices: 1, include_usage: true };
  const vectors = bytes(embeddings({ input: 'instant', dimensions: 8 }, model));
  return {
    chat: { whole: bytes(chatCompletion(answer, envelope)), stream: bytes(chatStream(answer, envelope)) },
    completions: {
      whole: bytes(textCompletion(answer, envelope)),
      stream: bytes(textStream(answer, envelope)),
    },
    embeddings: { whole: vectors, stream: vectors },
  };
}

/** Answers once the request is read. Whether it wants a stream is looked for as it comes. */
export function answerInstantly(
  request: IncomingMessage,
  response: ServerResponse,
  answers: { whole: Bytes; stream: Bytes },
): void {
  let streaming = false;
  request.on('data', (chunk: Buffer) => {
    streaming ||= chunk.includes('"stream":true') || chunk.includes('"stream": true');
  });
  request.on('end', () => {
    const { head, body } = streaming ? answers.stream : answers.whole;
    response.writeHead(200, head);
    response.end(body);
  });
}

function bytes(script: Script): Bytes {
  const body = Buffer.from(script.pieces.map(({ text }) => text).join(''));
  const head = { ...script.head?.headers, 'content-length': String(body.length) };
  return { head: Object.entries(head).flat(), body };
}
