import OpenAI from 'openai';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { SimBackend, type SimOptions } from './backend.ts';

const running: SimBackend[] = [];
afterEach(async () => {
  await Promise.all(running.splice(0).map((backend) => backend.close()));
});

async function start(options: Partial<SimOptions> = {}): Promise<{ backend: SimBackend; openai: OpenAI }> {
  const backend = new SimBackend({ models: ['m', 'org/m2'], ...options });
  await backend.listen();
  running.push(backend);
  const openai = new OpenAI({ baseURL: `${backend.url}/v1`, apiKey: 'any', maxRetries: 0 });
  return { backend, openai };
}

interface StatsView {
  requests: number;
  in_flight: number;
  max_in_flight: number;
  waiting: number;
  served: number;
  aborted: number;
  timings: { outcome: string; first_byte_ms: number; waited_ms: number; request_id: string | null }[];
}
async function stats(backend: SimBackend): Promise<StatsView> {
  return (await (await fetch(`${backend.url}/sim/stats`)).json()) as StatsView;
}

const hello = [{ role: 'user' as const, content: 'hello  wörld' }];

describe('the simulated backend, asked by the OpenAI SDK', () => {
  test('lists its models, each owned by flotilla-sim', async () => {
    const { openai } = await start();
    const models = await openai.models.list();
    expect(models.data.map(({ id, owned_by }) => [id, owned_by])).toEqual([
      ['m', 'flotilla-sim'],
      ['org/m2', 'flotilla-sim'],
    ]);
    expect((await openai.models.retrieve('org/m2')).id).toBe('org/m2');
  });

  test('answers a chat with text that says it is simulated and echoes', async () => {
    const { openai } = await start();
    const answer = await openai.chat.completions.create({ model: 'm', messages: hello });
    expect(answer.system_fingerprint).toBe('flotilla-sim');
    const text = answer.choices[0]?.message.content ?? '';
    expect(text).toContain('[simulated]');
    expect(text).toContain('hello  wörld');
    expect(answer.choices[0]?.finish_reason).toBe('stop');
    expect(answer.usage).toMatchObject({
      prompt_tokens: 2,
      completion_tokens: text.match(/\S+/g)?.length,
    });
  });

  test('streams the same text: role first, finish reason last, usage only when asked for', async () => {
    const { openai } = await start();
    const whole = await openai.chat.completions.create({ model: 'm', messages: hello });
    const stream = await openai.chat.completions.create({
      model: 'm',
      messages: hello,
      stream: true,
      stream_options: { include_usage: true },
    });
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    expect(chunks[0]?.choices[0]?.delta.role).toBe('assistant');
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('');
    expect(text).toBe(whole.choices[0]?.message.content);
    const counted = chunks.pop();
    expect(counted?.choices).toEqual([]);
    expect(counted?.usage).toEqual(whole.usage);
    expect(chunks.at(-1)?.choices[0]?.finish_reason).toBe('stop');
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1);
    expect(chunks.every(({ usage }) => usage === null)).toBe(true);

    const bare = await openai.chat.completions.create({ model: 'm', messages: hello, stream: true });
    for await (const chunk of bare) expect(chunk.usage).toBeUndefined();
  });

  test('ends its raw stream with [DONE]', async () => {
    const { backend } = await start();
    const body = JSON.stringify({ model: 'm', messages: hello, stream: true });
    const response = await fetch(`${backend.url}/v1/chat/completions`, { method: 'POST', body });
    expect(response.headers.get('content-type')).toBe('text/event-stream');
    expect((await response.text()).endsWith('data: [DONE]\n\n')).toBe(true);
  });

  test('calls the tool that is forced, with arguments that fit its schema, streamed or not', async () => {
    const { openai } = await start();
    const request = {
      model: 'm',
      messages: hello,
      tools: [
        {
          type: 'function' as const,
          function: {
            name: 'weather',
            parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
          },
        },
      ],
      tool_choice: { type: 'function' as const, function: { name: 'weather' } },
    };
    const answer = await openai.chat.completions.create(request);
    expect(answer.choices[0]).toMatchObject({
      finish_reason: 'tool_calls',
      message: {
        content: null,
        tool_calls: [{ type: 'function', function: { name: 'weather', arguments: '{"city":"simulated"}' } }],
      },
    });
    const streamed = await openai.chat.completions.stream(request).finalChatCompletion();
    expect(streamed.choices[0]?.message.tool_calls?.[0]).toMatchObject({
      function: { name: 'weather', arguments: '{"city":"simulated"}' },
    });
    const asked = await openai.chat.completions.create({
      ...request,
      tool_choice: 'auto',
      messages: [{ role: 'user', content: 'call weather for me' }],
    });
    expect(asked.choices[0]?.finish_reason).toBe('tool_calls');
    const unasked = await openai.chat.completions.create({ ...request, tool_choice: 'auto' });
    expect(unasked.choices[0]?.finish_reason).toBe('stop');
  });

  test('answers JSON that fits the schema of response_format', async () => {
    const { openai } = await start();
    const schema = {
      type: 'object',
      properties: { n: { type: 'integer', minimum: 2 } },
      required: ['n'],
      additionalProperties: false,
    };
    const answer = await openai.chat.completions.create({
      model: 'm',
      messages: hello,
      response_format: { type: 'json_schema', json_schema: { name: 'x', schema, strict: true } },
    });
    expect(JSON.parse(answer.choices[0]?.message.content ?? '')).toEqual({ n: 2 });
    const free = await openai.chat.completions.create({
      model: 'm',
      messages: hello,
      response_format: { type: 'json_object' },
    });
    expect(JSON.parse(free.choices[0]?.message.content ?? '')).toMatchObject({ simulated: true });
  });

  test('stops at max_tokens, with finish reason length', async () => {
    const { openai } = await start({ answer_tokens: 50 });
    const messages = hello;
    const long = await openai.chat.completions.create({ model: 'm', messages });
    expect(long.usage?.completion_tokens).toBe(50);
    const short = await openai.chat.completions.create({ model: 'm', messages, max_completion_tokens: 3 });
    expect(short.choices[0]?.finish_reason).toBe('length');
    expect(short.usage?.completion_tokens).toBe(3);
  });

  test('answers a text completion, streamed or not, for each of n choices', async () => {
    const { openai } = await start();
    const answer = await openai.completions.create({ model: 'm', prompt: 'once upon', n: 2 });
    expect(answer.choices).toHaveLength(2);
    const stream = await openai.completions.create({ model: 'm', prompt: 'once upon', stream: true });
    let text = '';
    for await (const chunk of stream) text += chunk.choices[0]?.text ?? '';
    expect(text).toBe(answer.choices[1]?.text);
  });

  test('gives the same text the same embedding of length 1, as base64 or numbers', async () => {
    const { openai } = await start();
    const ask = async (input: string | string[], encoding_format?: 'float') =>
      openai.embeddings.create({
        model: 'm',
        input,
        dimensions: 12,
        ...(encoding_format && { encoding_format }),
      });
    const both = await ask(['one two', 'three']);
    const [first, second] = both.data.map(({ embedding }) => embedding);
    expect(both.usage.prompt_tokens).toBe(3);
    expect(first).toHaveLength(12);
    expect(first).not.toEqual(second);
    expect((await ask('one two', 'float')).data[0]?.embedding).toEqual(first);
    expect(first?.reduce((sum, value) => sum + value * value, 0)).toBeCloseTo(1, 5);
  });

  test('refuses what it does not have in the shape the SDK knows', async () => {
    const { openai, backend } = await start({ api_key: 'right' });
    await expect(openai.models.list()).rejects.toThrow(OpenAI.AuthenticationError);
    const right = new OpenAI({ baseURL: `${backend.url}/v1`, apiKey: 'right', maxRetries: 0 });
    await expect(right.chat.completions.create({ model: 'x', messages: hello })).rejects.toMatchObject({
      status: 404,
      code: 'model_not_found',
    });
    const broken = await fetch(`${backend.url}/v1/chat/completions`, {
      method: 'POST',
      body: '{',
      headers: { authorization: 'Bearer right' },
    });
    expect(broken.status).toBe(400);
  });

  test('gives the same fixed bytes in instant mode', async () => {
    const { openai, backend } = await start({ instant: true });
    const answer = await openai.chat.completions.create({ model: 'm', messages: hello });
    expect(answer.choices[0]?.message.content).toContain('[simulated]');
    const stream = await openai.chat.completions.create({ model: 'm', messages: hello, stream: true });
    let text = '';
    for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? '';
    expect(text).toBe(answer.choices[0]?.message.content);
    expect(await stats(backend)).toMatchObject({ requests: 2, served: 2 });
  });
});

describe('the simulated machine', () => {
  test('takes the time that it is given: to the first token, and between tokens', async () => {
    const { openai, backend } = await start({ ttft_ms: 60, tokens_per_second: 200, answer_tokens: 20 });
    const begun = performance.now();
    await openai.chat.completions.create({ model: 'm', messages: hello });
    expect(performance.now() - begun).toBeGreaterThanOrEqual(60 + 20 * 5 - 2);
    const stream = await openai.chat.completions.create({ model: 'm', messages: hello, stream: true });
    for await (const chunk of stream) expect(chunk.id).toContain('chat-sim-');
    const last = (await stats(backend)).timings.at(-1);
    expect(last?.first_byte_ms).toBeGreaterThanOrEqual(58);
    expect(last?.first_byte_ms).toBeLessThan(160);
  });

  test('works on as many requests at once as it has slots; the others wait', async () => {
    const { openai, backend } = await start({ slots: 2, ttft_ms: 30 });
    const ask = () => openai.chat.completions.create({ model: 'm', messages: hello });
    await Promise.all([ask(), ask(), ask(), ask(), ask()]);
    expect(await stats(backend)).toMatchObject({ requests: 5, served: 5, max_in_flight: 2, in_flight: 0 });
  });

  test('stops work and frees the slot when the client leaves', async () => {
    const { openai, backend } = await start({ slots: 1, tokens_per_second: 50, answer_tokens: 5000 });
    const stream = await openai.chat.completions.create({ model: 'm', messages: hello, stream: true });
    const queued = new AbortController();
    const never = openai.chat.completions
      .create({ model: 'm', messages: hello }, { signal: queued.signal })
      .catch((error: unknown) => error);
    await vi.waitFor(async () => expect(await stats(backend)).toMatchObject({ in_flight: 1, waiting: 1 }));
    queued.abort();
    await vi.waitFor(async () => expect((await stats(backend)).waiting).toBe(0));
    stream.controller.abort();
    await vi.waitFor(async () => expect(await stats(backend)).toMatchObject({ in_flight: 0, aborted: 2 }));
    expect(await never).toBeInstanceOf(OpenAI.APIUserAbortError);
  });

  test('remembers the request id that it was asked with', async () => {
    const { openai, backend } = await start();
    const options = { headers: { 'x-request-id': 'req_7' } };
    await openai.chat.completions.create({ model: 'm', messages: hello }, options);
    expect((await stats(backend)).timings[0]?.request_id).toBe('req_7');
  });
});
