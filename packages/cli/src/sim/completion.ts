import { type Answer, slices } from './answer.ts';
import { DONE_EVENT, dataEvent, jsonScript, type Piece, type Script, streamScript } from './script.ts';

/** The mark of every simulated answer, where a real backend names its build. */
export const FINGERPRINT = 'flotilla-sim';

export interface Envelope {
  id: string;
  model: string;
  /** Seconds since the epoch. */
  created: number;
  /** How many choices: the request's `n`. */
  choices: number;
  /** The request's `stream_options.include_usage`. */
  include_usage: boolean;
}

/** `POST /v1/chat/completions` without `stream`. */
export function chatCompletion(answer: Answer, envelope: Envelope): Script {
  const message = answer.tool_call
    ? { role: 'assistant', content: null, tool_calls: [toolCall(answer.tool_call, envelope.id)] }
    : { role: 'assistant', content: answer.pieces.join(''), refusal: null };
  return whole('chat.completion', answer, envelope, { message });
}

/** `POST /v1/completions` without `stream`. */
export function textCompletion(answer: Answer, envelope: Envelope): Script {
  return whole('text_completion', answer, envelope, { text: answer.pieces.join('') });
}

function whole(object: string, answer: Answer, envelope: Envelope, content: object): Script {
  const choices = Array.from({ length: envelope.choices }, (_, index) => ({
    index,
    ...content,
    logprobs: null,
    finish_reason: answer.finish_reason,
  }));
  const body = { ...common(object, envelope), choices, usage: usage(answer, envelope) };
  return jsonScript(200, body, answer.completion_tokens);
}

/** The same as events: the role first, then the pieces, then the finish reason, then usage if asked for, `[DONE]`. */
export function chatStream(answer: Answer, envelope: Envelope): Script {
  const deltas = answer.tool_call
    ? toolCallDeltas(answer.tool_call, envelope.id)
    : answer.pieces.map((content) => ({ content }));
  const first = answer.tool_call ? { role: 'assistant', content: null } : { role: 'assistant', content: '' };
  const steps = [first, ...deltas].map((delta) => ({ delta }));
  return events('chat.completion.chunk', steps, { delta: {} }, answer, envelope);
}

export function textStream(answer: Answer, envelope: Envelope): Script {
  // The first step has no text yet: a client sees that the answer has begun.
  const steps = ['', ...answer.pieces].map((text) => ({ text }));
  return events('text_completion', steps, { text: '' }, answer, envelope);
}

function events(object: string, steps: object[], last: object, answer: Answer, envelope: Envelope): Script {
  const base = common(object, envelope);
  const noUsage = envelope.include_usage ? { usage: null } : {};
  const pieces: Piece[] = [];
  const add = (step: object, finish_reason: string | null, after_tokens: number) => {
    for (let index = 0; index < envelope.choices; index++) {
      const choices = [{ index, ...step, logprobs: null, finish_reason }];
      pieces.push({ text: dataEvent({ ...base, choices, ...noUsage }), after_tokens });
    }
  };
  for (const [count, step] of steps.entries()) add(step, null, count);
  const end = steps.length - 1;
  add(last, answer.finish_reason, end);
  if (envelope.include_usage) {
    const counted = dataEvent({ ...base, choices: [], usage: usage(answer, envelope) });
    pieces.push({ text: counted, after_tokens: end });
  }
  pieces.push({ text: DONE_EVENT, after_tokens: end });
  return streamScript(pieces);
}

function common(object: string, envelope: Envelope): object {
  const { id, created, model } = envelope;
  return { id, object, created, model, system_fingerprint: FINGERPRINT };
}

function usage(answer: Answer, envelope: Envelope): object {
  const completion_tokens = answer.completion_tokens * envelope.choices;
  const { prompt_tokens } = answer;
  return {
    prompt_tokens,
    completion_tokens,
    total_tokens: prompt_tokens + completion_tokens,
    prompt_tokens_details: { cached_tokens: 0 },
  };
}

function toolCall(call: { name: string; arguments: string }, id: string): object {
  return { id: `call_${id}`, type: 'function', function: { name: call.name, arguments: call.arguments } };
}

function toolCallDeltas(call: { name: string; arguments: string }, id: string): object[] {
  const opening = { index: 0, ...toolCall({ name: call.name, arguments: '' }, id) };
  const pieces = slices(call.arguments).map((text) => ({ index: 0, function: { arguments: text } }));
  return [opening, ...pieces].map((part) => ({ tool_calls: [part] }));
}
