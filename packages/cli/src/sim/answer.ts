import { minimalInstance } from './schema.ts';

/** A chat or text request as far as the simulation reads it. Anything may be missing or of another kind. */
export type Request = Record<string, unknown>;

/** What a simulated model says. Always recognisable: the text says that it is simulated. */
export interface Answer {
  /** The text in the pieces in which it streams; together they are the whole. */
  pieces: string[];
  /** Instead of text. */
  tool_call: { name: string; arguments: string } | null;
  finish_reason: 'stop' | 'length' | 'tool_calls';
  prompt_tokens: number;
  completion_tokens: number;
}

const ECHO_CHARACTERS_MAX = 2000;

/**
 * @param tokens_min how long a text answer is at least, in tokens; shorter ones are filled up
 */
export function answerChat(request: Request, model: string, tokens_min: number): Answer {
  const messages = list(request['messages']).map(record);
  const said = textOf(messages.at(-1)?.['content']);
  const prompt_tokens = messages.reduce((sum, message) => sum + countTokens(textOf(message['content'])), 0);

  const tool = wantedTool(request, messages.at(-1));
  if (tool) {
    const args = JSON.stringify(minimalInstance(tool.parameters));
    return {
      pieces: [],
      tool_call: { name: tool.name, arguments: args },
      finish_reason: 'tool_calls',
      prompt_tokens,
      completion_tokens: countTokens(args),
    };
  }
  const json = wantedJson(request, said);
  if (json !== undefined) {
    return { ...finish(request, slices(json)), prompt_tokens, completion_tokens: countTokens(json) };
  }
  return say(request, model, said, prompt_tokens, tokens_min);
}

export function answerText(request: Request, model: string, tokens_min: number): Answer {
  const { prompt } = request;
  const said = textOf(Array.isArray(prompt) ? prompt[0] : prompt);
  const answer = say(request, model, said, countTokens(said), tokens_min);
  return request['echo'] === true ? { ...answer, pieces: [said, ...answer.pieces] } : answer;
}

function say(
  request: Request,
  model: string,
  said: string,
  prompt_tokens: number,
  tokens_min: number,
): Answer {
  const echo = said.length > ECHO_CHARACTERS_MAX ? `${said.slice(0, ECHO_CHARACTERS_MAX)}…` : said;
  let text = `[simulated] This is ${model} of flotilla-sim, no real model. You said: "${echo}"`;
  for (const stop of typeof request['stop'] === 'string' ? [request['stop']] : list(request['stop'])) {
    if (typeof stop === 'string' && stop !== '' && text.includes(stop)) text = text.split(stop, 1)[0] ?? '';
  }
  const pieces: string[] = text.match(/\s*\S+/g) ?? [];
  while (pieces.length < tokens_min) pieces.push(` sim${pieces.length + 1}`);
  const answer = finish(request, pieces);
  return { ...answer, prompt_tokens, completion_tokens: answer.pieces.length };
}

/** Cuts where the request says that the answer ends. */
function finish(request: Request, pieces: string[]): Pick<Answer, 'pieces' | 'tool_call' | 'finish_reason'> {
  const most = request['max_completion_tokens'] ?? request['max_tokens'];
  const cut = typeof most === 'number' && most > 0 && most < pieces.length;
  return {
    pieces: cut ? pieces.slice(0, most) : pieces,
    tool_call: null,
    finish_reason: cut ? 'length' : 'stop',
  };
}

/** A tool is called when the request forces it, or the last message names one or asks to use a tool. */
function wantedTool(
  request: Request,
  last: Request | undefined,
): { name: string; parameters: unknown } | undefined {
  const tools = list(request['tools'])
    .map((tool) => record(record(tool)['function']))
    .filter((tool) => typeof tool['name'] === 'string')
    .map((tool) => ({ name: tool['name'] as string, parameters: tool['parameters'] ?? { type: 'object' } }));
  const choice = request['tool_choice'];
  if (tools.length === 0 || choice === 'none') return undefined;
  if (choice === 'required') return tools[0];
  const forced = record(record(choice)['function'])['name'];
  if (typeof forced === 'string') return tools.find(({ name }) => name === forced);
  if (last?.['role'] !== 'user') return undefined;
  const said = textOf(last['content']);
  const named = tools.find(({ name }) => said.includes(name));
  return named ?? (/\b(use|call) (a|the|your) tools?\b/i.test(said) ? tools[0] : undefined);
}

function wantedJson(request: Request, said: string): string | undefined {
  const format = record(request['response_format']);
  if (format['type'] === 'json_schema') {
    return JSON.stringify(minimalInstance(record(format['json_schema'])['schema'] ?? {}));
  }
  if (format['type'] !== 'json_object') return undefined;
  return JSON.stringify({ simulated: true, echo: said.slice(0, ECHO_CHARACTERS_MAX) });
}

/** A word is a token: what the simulation counts can be counted by hand. */
export function countTokens(text: string): number {
  return text.match(/\S+/g)?.length ?? 0;
}

/** Pieces of JSON, which has no words to part it at. */
export function slices(text: string): string[] {
  return text.match(/.{1,8}/gsu) ?? [];
}

function textOf(content: unknown): string {
  if (typeof content === 'string') return content;
  const parts = list(content).map((part) => record(part)['text']);
  return parts.filter((part) => typeof part === 'string').join('\n');
}
function list(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}
function record(value: unknown): Request {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Request) : {};
}
