import OpenAI from 'openai';

// A streamed chat with the official SDK: only the base URL and the key are Flotilla's.
const { FLOTILLA_URL = 'http://127.0.0.1:7400', FLOTILLA_API_KEY, FLOTILLA_MODEL } = process.env;
const client = new OpenAI({ baseURL: `${FLOTILLA_URL}/v1`, apiKey: FLOTILLA_API_KEY });

const model = FLOTILLA_MODEL ?? (await client.models.list()).data[0]?.id;
if (model === undefined) throw new Error('No node offers a model yet: see `flotilla nodes`.');

const stream = await client.chat.completions.create({
  model,
  messages: [{ role: 'user', content: 'What is a fleet of machines good for? One sentence.' }],
  // Reserves less of a key's budget than an answer without a bound.
  max_tokens: 200,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta.content ?? '');
  if (chunk.usage) process.stdout.write(`\n(${chunk.usage.total_tokens} tokens)\n`);
}
