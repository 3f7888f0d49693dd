import { createHash } from 'node:crypto';
import { countTokens, type Request } from './answer.ts';
import { FINGERPRINT } from './completion.ts';
import { jsonScript, type Script } from './script.ts';

const DIMENSIONS = 256;
const DIMENSIONS_MAX = 8192;

/** `POST /v1/embeddings`: the same text always gives the same vector of length 1. */
export function embeddings(request: Request, model: string): Script {
  const inputs = readInput(request['input']);
  const wanted = request['dimensions'];
  const dimensions =
    typeof wanted === 'number' && wanted >= 1 ? Math.min(wanted, DIMENSIONS_MAX) : DIMENSIONS;
  const base64 = request['encoding_format'] === 'base64';
  const prompt_tokens = inputs.reduce((sum, input) => sum + input.tokens, 0);
  const data = inputs.map(({ text }, index) => {
    const vector = embed(text, Math.floor(dimensions));
    const embedding = base64 ? Buffer.from(vector.buffer).toString('base64') : [...vector];
    return { object: 'embedding', index, embedding };
  });
  return jsonScript(200, {
    object: 'list',
    model,
    data,
    usage: { prompt_tokens, total_tokens: prompt_tokens },
    system_fingerprint: FINGERPRINT,
  });
}

/** A text, texts, token numbers, or lists of them. */
function readInput(input: unknown): { text: string; tokens: number }[] {
  if (Array.isArray(input) && input.every((item) => typeof item === 'number')) return [ofTokens(input)];
  const items: unknown[] = Array.isArray(input) ? input : [input];
  return items.map((item) =>
    Array.isArray(item) ? ofTokens(item) : { text: String(item), tokens: countTokens(String(item)) },
  );
}

function ofTokens(tokens: unknown[]): { text: string; tokens: number } {
  return { text: tokens.join(' '), tokens: tokens.length };
}

function embed(text: string, dimensions: number): Float32Array {
  const vector = new Float32Array(dimensions);
  let block = Buffer.alloc(32);
  let squares = 0;
  for (let at = 0; at < dimensions; at++) {
    // 32 bytes of a hash are 8 numbers; the block's number makes the next ones differ.
    if (at % 8 === 0) block = createHash('sha256').update(`${at}:${text}`).digest();
    const value = block.readInt32LE((at % 8) * 4) / 0x8000_0000;
    vector[at] = value;
    squares += value * value;
  }
  const length = Math.sqrt(squares);
  return vector.map((value) => value / length);
}
