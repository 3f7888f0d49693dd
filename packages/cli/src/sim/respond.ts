import { answerChat, answerText, type Request } from './answer.ts';
import { chatCompletion, chatStream, type Envelope, textCompletion, textStream } from './completion.ts';
import { embeddings } from './embedding.ts';
import { errorScript, type Script } from './script.ts';

export type Operation = 'chat' | 'completions' | 'embeddings';

export const OPERATION_PATHS: Record<string, Operation> = {
  '/v1/chat/completions': 'chat',
  '/v1/completions': 'completions',
  '/v1/embeddings': 'embeddings',
};

/**
 * The right answer to a request, before any fault.
 * @param id names the answer
 * @param asked undefined when the body was no JSON object
 */
export function respond(
  operation: Operation,
  asked: Request | undefined,
  id: string,
  { models, answer_tokens }: { models: string[]; answer_tokens: number },
): Script {
  if (asked === undefined) {
    return errorScript(400, 'invalid_request_error', 'invalid_json', 'The body is not a JSON object.');
  }
  const { model } = asked;
  if (typeof model !== 'string' || !models.includes(model)) {
    const message = `There is no model ${JSON.stringify(model)} here; there is ${models.join(', ')}.`;
    return errorScript(404, 'invalid_request_error', 'model_not_found', message);
  }
  const streaming = asked['stream'] === true;
  const envelope = envelopeOf(asked, id, model);
  switch (operation) {
    case 'embeddings':
      return embeddings(asked, model);
    case 'chat': {
      const answer = answerChat(asked, model, answer_tokens);
      return streaming ? chatStream(answer, envelope) : chatCompletion(answer, envelope);
    }
    case 'completions': {
      const answer = answerText(asked, model, answer_tokens);
      return streaming ? textStream(answer, envelope) : textCompletion(answer, envelope);
    }
  }
}

function envelopeOf(asked: Request, id: string, model: string): Envelope {
  const options = asked['stream_options'];
  const open = typeof options === 'object' && options !== null && 'include_usage' in options;
  const { n } = asked;
  return {
    id,
    model,
    created: Math.floor(Date.now() / 1000),
    choices: typeof n === 'number' && n >= 1 && n <= 128 ? Math.floor(n) : 1,
    include_usage: open && options.include_usage === true,
  };
}
