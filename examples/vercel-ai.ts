import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { streamText } from 'ai';
import { Flotilla } from '@flotilla/sdk';

// A streamed text with the Vercel AI SDK.
const { FLOTILLA_URL = 'http://127.0.0.1:7400', FLOTILLA_API_KEY = '', FLOTILLA_MODEL } = process.env;
const flotilla = createOpenAICompatible({
  name: 'flotilla',
  baseURL: `${FLOTILLA_URL}/v1`,
  apiKey: FLOTILLA_API_KEY,
  includeUsage: true,
});

const models = await new Flotilla({ url: FLOTILLA_URL, api_key: FLOTILLA_API_KEY }).models.list();
const model = FLOTILLA_MODEL ?? models[0]?.id;
if (model === undefined) throw new Error('No node offers a model yet: see `flotilla nodes`.');

const { textStream, usage } = streamText({
  model: flotilla(model),
  prompt: 'What is a fleet of machines good for? One sentence.',
  maxOutputTokens: 200,
});
for await (const text of textStream) process.stdout.write(text);
process.stdout.write(`\n(${(await usage).totalTokens} tokens)\n`);
