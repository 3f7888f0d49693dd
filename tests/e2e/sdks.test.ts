import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import {
  APICallError,
  embed,
  embedMany,
  generateObject,
  generateText,
  jsonSchema,
  Output,
  RetryError,
  streamText,
} from 'ai';
import OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { flotilla, type Program } from '../support/program.ts';
import { until } from '../support/until.ts';
import { type World, openWorld } from '../support/world.ts';

/** The clients that people have, unchanged, against `/v1` over simulated backends. */
let world: World;
let sim: Sim;
/** As slow as a model on a small machine: its answers can be left in their middle. */
let slow: Sim;
const MODEL = 'org/sim-chat';
const SLOW = 'sim-slow';
const EMBEDDING = 'sim-embed';

beforeAll(async () => {
  globalThis.AI_SDK_LOG_WARNINGS = false;
  [world, sim, slow] = await Promise.all([
    openWorld({ heartbeat_ms: 2000 }),
    startSim(['--model', MODEL, '--model', EMBEDDING]),
    startSim(['--model', SLOW, '--tokens-per-second', '50', '--answer-tokens', '3000']),
  ]);
  await world.node({ name: 'box', backends: [{ url: sim.url }, { url: slow.url }] });
}, 60_000);
afterAll(async () => {
  await world.close();
  await Promise.all([sim.program.stop(), slow.program.stop()]);
});

interface Sim {
  program: Program;
  url: string;
  stats(): Promise<{ in_flight: number; timings: { request_id: string | null; outcome: string | null }[] }>;
}

async function startSim(args: string[]): Promise<Sim> {
  const program = flotilla(['sim', 'backend', '--port', '0', '--json', ...args]);
  const [, url] = await until('the simulated backend listens', () =>
    /"url": ?"(\S+?)"/.exec(program.output()),
  );
  return {
    program,
    url: url!,
    stats: async () => (await fetch(new URL('/sim/stats', url))).json() as ReturnType<Sim['stats']>,
  };
}

/** What a client's requests were answered with, in order, and when. */
interface Exchange {
  status: number;
  headers: Headers;
  at_ms: number;
}

function recorded(exchanges: Exchange[]): typeof fetch {
  return async (input, init) => {
    const reply = await fetch(input, init);
    exchanges.push({ status: reply.status, headers: reply.headers, at_ms: performance.now() });
    return reply;
  };
}

/** Both clients wait out `retry-after-ms` between three attempts, although their own pause would be shorter. */
function expectWaits(exchanges: Exchange[]): void {
  expect(exchanges.map(({ status }) => status)).toEqual([429, 429, 429]);
  for (const [index, { headers, at_ms }] of exchanges.slice(0, -1).entries()) {
    const asked_ms = Number(headers.get('retry-after-ms'));
    expect(asked_ms).toBeGreaterThan(500);
    expect(exchanges[index + 1]!.at_ms - at_ms).toBeGreaterThanOrEqual(asked_ms - 2);
  }
}

/** A key that may do one thing at once and does it, until `release`. */
async function busyKey(): Promise<{ key: string; release: () => Promise<void> }> {
  const key = await world.key({ concurrency: 1 });
  const abort = new AbortController();
  const reply = await world.plane.chat({ model: SLOW, stream: true }, { key, signal: abort.signal });
  expect(reply.status).toBe(200);
  return {
    key,
    async release() {
      // Named here, it cannot be collected before: fetch cancels the stream of an answer that nobody holds.
      expect(reply.bodyUsed).toBe(false);
      abort.abort();
      await until('the backend is free', async () => (await slow.stats()).in_flight === 0);
    },
  };
}

const messages = [{ role: 'user' as const, content: 'Hello  wörld 😀' }];
const CITY = {
  type: 'object' as const,
  properties: { city: { type: 'string' as const }, days: { type: 'integer' as const, minimum: 2 } },
  required: ['city', 'days'],
  additionalProperties: false as const,
};
const FOUND = { city: 'simulated', days: 2 };

describe('the OpenAI SDK', () => {
  const client = (options: ConstructorParameters<typeof OpenAI>[0] = {}) =>
    new OpenAI({
      baseURL: `${world.plane.url}/v1`,
      apiKey: world.plane.admin_key,
      maxRetries: 0,
      ...options,
    });
  const weather = {
    type: 'function' as const,
    function: { name: 'weather', description: 'The weather', parameters: CITY },
  };
  const forced = {
    model: MODEL,
    messages,
    tools: [weather],
    tool_choice: { type: 'function' as const, function: { name: 'weather' } },
  };

  it('lists and retrieves models', async () => {
    const openai = client();
    const ids: string[] = [];
    for await (const model of openai.models.list()) ids.push(model.id);
    expect(ids).toEqual([MODEL, EMBEDDING, SLOW]);
    expect(await openai.models.retrieve(MODEL)).toMatchObject({ id: MODEL, object: 'model' });
    await expect(openai.models.retrieve('none')).rejects.toThrow(OpenAI.NotFoundError);
  });

  it('chats', async () => {
    const answer = await client().chat.completions.create({ model: MODEL, messages });
    expect(answer.choices[0]).toMatchObject({ finish_reason: 'stop', message: { role: 'assistant' } });
    expect(answer.choices[0]!.message.content).toContain('Hello  wörld 😀');
    expect(answer.usage).toMatchObject({
      prompt_tokens: 3,
      total_tokens: answer.usage!.completion_tokens + 3,
    });
  });

  it('streams the same', async () => {
    const openai = client();
    const whole = await openai.chat.completions.create({ model: MODEL, messages });
    const stream = openai.chat.completions.stream({ model: MODEL, messages });
    const pieces: string[] = [];
    stream.on('content', (piece) => pieces.push(piece));
    const answer = await stream.finalChatCompletion();
    expect(answer.choices[0]!.message.content).toBe(whole.choices[0]!.message.content);
    expect(answer.choices[0]!.finish_reason).toBe('stop');
    expect(pieces.length).toBeGreaterThan(5);
  });

  it('gets usage in a stream where it asks for it, and no event of it where it does not', async () => {
    const openai = client();
    const asked = await openai.chat.completions.create({
      model: MODEL,
      messages,
      stream: true,
      stream_options: { include_usage: true },
    });
    const chunks = [];
    for await (const chunk of asked) chunks.push(chunk);
    const last = chunks.at(-1)!;
    expect(last.choices).toEqual([]);
    expect(last.usage).toMatchObject({ prompt_tokens: 3 });

    const { data: open, request_id } = await openai.chat.completions
      .create({ model: MODEL, messages, stream: true })
      .withResponse();
    for await (const chunk of open) {
      expect(chunk.choices).toHaveLength(1);
      expect(chunk.usage ?? null).toBeNull();
    }
    const row = await until('its use is known', async () =>
      (await world.usage()).find((one) => one.request_id === request_id),
    );
    expect(row).toMatchObject({
      estimated: false,
      prompt_tokens: 3,
      completion_tokens: last.usage!.completion_tokens,
    });
  });

  it('calls tools', async () => {
    const answer = await client().chat.completions.create(forced);
    const [call] = answer.choices[0]!.message.tool_calls!;
    expect(answer.choices[0]!.finish_reason).toBe('tool_calls');
    expect(call).toMatchObject({ type: 'function', function: { name: 'weather' } });
    expect(call!.type === 'function' && JSON.parse(call!.function.arguments)).toEqual(FOUND);
  });

  it('calls tools in a stream, and goes on with what they return', async () => {
    const openai = client();
    const runner = openai.chat.completions.runTools({
      model: MODEL,
      stream: true,
      messages: [{ role: 'user', content: 'use weather' }],
      tools: [
        {
          type: 'function',
          function: {
            name: 'weather',
            description: 'The weather',
            parameters: CITY,
            parse: JSON.parse,
            function: (found: typeof FOUND) => `sunny in ${found.city} for ${found.days} days`,
          },
        },
      ],
    });
    expect(await runner.finalContent()).toContain('sunny in simulated for 2 days');
    expect(await runner.finalFunctionToolCall()).toMatchObject({ name: 'weather' });
  });

  it('gets structured output', async () => {
    const response_format = {
      type: 'json_schema' as const,
      json_schema: { name: 'city', schema: CITY, strict: true },
    };
    const openai = client();
    const whole = await openai.chat.completions.parse({ model: MODEL, messages, response_format });
    expect(whole.choices[0]!.message.parsed).toEqual(FOUND);
    const stream = openai.chat.completions.stream({ model: MODEL, messages, response_format });
    expect(JSON.parse((await stream.finalContent())!)).toEqual(FOUND);
  });

  it('gets embeddings, packed and as numbers', async () => {
    const openai = client();
    const input = ['one', 'zwei', '三'];
    // The SDK asks for base64 by itself and unpacks it.
    const packed = await openai.embeddings.create({ model: EMBEDDING, input, dimensions: 8 });
    const plain = await openai.embeddings.create({
      model: EMBEDDING,
      input,
      dimensions: 8,
      encoding_format: 'float',
    });
    expect(packed.data).toHaveLength(3);
    expect(packed.usage.prompt_tokens).toBe(3);
    for (const [index, { embedding }] of packed.data.entries()) {
      expect(embedding).toHaveLength(8);
      for (const [at, value] of embedding.entries())
        expect(value).toBeCloseTo(plain.data[index]!.embedding[at]!, 5);
    }
  });

  it('completes text, streamed or not', async () => {
    const openai = client();
    const whole = await openai.completions.create({ model: MODEL, prompt: 'once upon', n: 2 });
    expect(whole.choices).toHaveLength(2);
    let text = '';
    const stream = await openai.completions.create({ model: MODEL, prompt: 'once upon', stream: true });
    for await (const chunk of stream) text += chunk.choices[0]?.text ?? '';
    expect(text).toBe(whole.choices[0]!.text);
  });

  it('leaves in mid-stream, and the backend is free', async () => {
    const stream = await client().chat.completions.create({ model: SLOW, messages, stream: true });
    for await (const chunk of stream) if (chunk.choices[0]?.delta.content) break;
    stream.controller.abort();
    await until('the backend is free', async () => (await slow.stats()).in_flight === 0);
    expect((await slow.stats()).timings.at(-1)!.outcome).toBe('aborted');
  });

  it('shows the request id, of an answer and of an error, its own where it gave one', async () => {
    const openai = client();
    const answer = await openai.chat.completions.create({ model: MODEL, messages });
    expect(answer._request_id).toMatch(/\S/);
    const headers = { 'x-request-id': 'mine-7' };
    const own = await openai.chat.completions.create({ model: MODEL, messages }, { headers });
    expect(own._request_id).toBe('mine-7');
    expect((await sim.stats()).timings.slice(-2).map(({ request_id }) => request_id)).toEqual([
      answer._request_id,
      'mine-7',
    ]);
    const refused = openai.chat.completions.create({ model: 'none', messages }, { headers });
    await expect(refused).rejects.toMatchObject({ requestID: 'mine-7' });
  });

  it('tells its errors apart', async () => {
    const missing = client({ maxRetries: 2 }).chat.completions.create({ model: 'none', messages });
    await expect(missing).rejects.toThrow(OpenAI.NotFoundError);
    await expect(missing).rejects.toMatchObject({ status: 404, code: 'model_not_found', param: 'model' });
    const unknown = client({ apiKey: 'flk_wrong' }).models.list();
    await expect(unknown).rejects.toThrow(OpenAI.AuthenticationError);
    await expect(unknown).rejects.toMatchObject({ status: 401, code: 'unauthorized' });
    const wrong = client().chat.completions.create({ model: MODEL, messages: 'hello' as never });
    await expect(wrong).rejects.toThrow(OpenAI.BadRequestError);
    await expect(wrong).rejects.toMatchObject({ code: 'invalid_request', param: 'messages' });
    const key = await world.key({ scopes: ['nodes:read'] });
    const forbidden = client({ apiKey: key }).chat.completions.create({ model: MODEL, messages });
    await expect(forbidden).rejects.toThrow(OpenAI.PermissionDeniedError);
  });

  it('asks again when it is told to wait, as long as it is told, and then gives up or is served', async () => {
    const { key, release } = await busyKey();
    const exchanges: Exchange[] = [];
    const patient = client({ apiKey: key, maxRetries: 2, fetch: recorded(exchanges) });
    const refused = patient.chat.completions.create({ model: MODEL, messages });
    await expect(refused).rejects.toThrow(OpenAI.RateLimitError);
    await expect(refused).rejects.toMatchObject({ status: 429, code: 'rate_limited' });
    expectWaits(exchanges);
    exchanges.length = 0;
    const served = patient.chat.completions.create({ model: MODEL, messages });
    await until('it was refused once', () => exchanges.length === 1);
    await release();
    expect((await served).choices).toHaveLength(1);
    expect(exchanges.map(({ status }) => status)).toEqual([429, 200]);
  });
});

describe('the AI SDK', () => {
  const provider = (options: Partial<Parameters<typeof createOpenAICompatible>[0]> = {}) =>
    createOpenAICompatible({
      name: 'flotilla',
      baseURL: `${world.plane.url}/v1`,
      apiKey: world.plane.admin_key,
      includeUsage: true,
      supportsStructuredOutputs: true,
      ...options,
    });
  const once = { maxRetries: 0 };
  const prompt = 'Hello  wörld 😀';
  const schema = jsonSchema<typeof FOUND>(CITY);
  const tools = { weather: { description: 'The weather', inputSchema: schema } };

  it('generates text', async () => {
    const { text, usage, finishReason, response } = await generateText({
      model: provider()(MODEL),
      prompt,
      ...once,
    });
    expect(text).toContain(prompt);
    expect(finishReason).toBe('stop');
    expect(usage).toMatchObject({ inputTokens: 3, outputTokens: text.match(/\S+/g)!.length });
    expect(response.headers!['x-request-id']).toMatch(/\S/);
  });

  it('streams the same text, with usage where it asks for it', async () => {
    const whole = await generateText({ model: provider()(MODEL), prompt, ...once });
    const stream = streamText({ model: provider()(MODEL), prompt, ...once });
    let text = '';
    for await (const piece of stream.textStream) text += piece;
    expect(text).toBe(whole.text);
    expect(await stream.usage).toMatchObject({ inputTokens: 3, outputTokens: whole.usage.outputTokens });
    const without = streamText({ model: provider({ includeUsage: false })(MODEL), prompt, ...once });
    expect(await without.text).toBe(whole.text);
    expect((await without.usage).outputTokens).toBeUndefined();
  });

  it('calls tools, streamed or not', async () => {
    const forced = { model: provider()(MODEL), prompt, tools, toolChoice: 'required' as const, ...once };
    const whole = await generateText(forced);
    expect(whole.finishReason).toBe('tool-calls');
    expect(whole.toolCalls).toMatchObject([{ toolName: 'weather', input: FOUND }]);
    const stream = streamText(forced);
    const deltas: string[] = [];
    for await (const part of stream.fullStream) if (part.type === 'tool-input-delta') deltas.push(part.delta);
    expect(JSON.parse(deltas.join(''))).toEqual(FOUND);
    expect(deltas.length).toBeGreaterThan(1);
    expect(await stream.toolCalls).toMatchObject([{ toolName: 'weather', input: FOUND }]);
  });

  it('generates objects, streamed or not', async () => {
    const model = provider()(MODEL);
    expect((await generateObject({ model, prompt, schema, ...once })).object).toEqual(FOUND);
    const output = Output.object({ schema });
    expect((await generateText({ model, prompt, output, ...once })).output).toEqual(FOUND);
    const stream = streamText({ model, prompt, output, ...once });
    expect(await stream.output).toEqual(FOUND);
  });

  it('embeds', async () => {
    const model = provider().embeddingModel(EMBEDDING);
    const { embedding } = await embed({ model, value: 'one', ...once });
    const { embeddings, usage } = await embedMany({ model, values: ['one', 'two words'], ...once });
    expect(embeddings[0]).toEqual(embedding);
    expect(usage.tokens).toBe(3);
  });

  it('completes text, streamed or not', async () => {
    const model = provider().completionModel(MODEL);
    const whole = await generateText({ model, prompt, ...once });
    expect(whole.text).toContain('[simulated]');
    expect(await streamText({ model, prompt, ...once }).text).toBe(whole.text);
  });

  it('leaves in mid-stream, and the backend is free', async () => {
    const abort = new AbortController();
    const stream = streamText({ model: provider()(SLOW), prompt, abortSignal: abort.signal, ...once });
    for await (const part of stream.fullStream) if (part.type === 'text-delta') abort.abort();
    await until('the backend is free', async () => (await slow.stats()).in_flight === 0);
    expect((await slow.stats()).timings.at(-1)!.outcome).toBe('aborted');
  });

  it('tells its errors apart, and repeats none that would not help', async () => {
    const exchanges: Exchange[] = [];
    const fetch = recorded(exchanges);
    const missing = await generateText({ model: provider({ fetch })('none'), prompt }).catch(
      (error: unknown) => error,
    );
    expect(APICallError.isInstance(missing)).toBe(true);
    expect(missing).toMatchObject({
      statusCode: 404,
      isRetryable: false,
      data: { error: { code: 'model_not_found' } },
    });
    const unknown = await generateText({
      model: provider({ fetch, apiKey: 'flk_wrong' })(MODEL),
      prompt,
    }).catch((error: unknown) => error);
    expect(unknown).toMatchObject({
      statusCode: 401,
      isRetryable: false,
      data: { error: { code: 'unauthorized' } },
    });
    expect(exchanges).toHaveLength(2);
  });

  it('asks again when it is told to wait, as long as it is told, and then gives up', async () => {
    const { key, release } = await busyKey();
    const exchanges: Exchange[] = [];
    const model = provider({ apiKey: key, fetch: recorded(exchanges) })(MODEL);
    const refused = await generateText({ model, prompt, maxRetries: 2 }).catch((error: unknown) => error);
    expect(RetryError.isInstance(refused)).toBe(true);
    expect((refused as RetryError).lastError).toMatchObject({
      statusCode: 429,
      data: { error: { code: 'rate_limited' } },
    });
    expectWaits(exchanges);
    await release();
  });
});
