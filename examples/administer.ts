import { Flotilla, FlotillaApiError } from '@flotilla/sdk';

// What an administrator does, by the SDK: look at the fleet, make a key with a budget, see what it used, end it.
const { FLOTILLA_URL: url = 'http://127.0.0.1:7400', FLOTILLA_API_KEY: api_key = '' } = process.env;
const admin = new Flotilla({ url, api_key });
const say = (line: string) => process.stdout.write(`${line}\n`);

for await (const node of admin.nodes.list()) say(`${node.name}: ${node.state}, ${node.health}`);
const [model] = await admin.models.list();
if (model === undefined) throw new Error('No node offers a model yet: see `flotilla nodes`.');

const made = await admin.keys.create({
  name: 'example',
  allowed_models: [model.id],
  token_budget: { tokens: 1000, period: 'day' },
});
try {
  const user = new Flotilla({ url, api_key: made.key });
  const answer = await user.chat.create({
    model: model.id,
    messages: [{ role: 'user', content: 'Hello' }],
    max_tokens: 100,
  });
  say(`answer: ${answer.choices[0]?.message.content}`);
  const { budget } = await user.usage.limits();
  say(`used ${budget?.used} of ${budget?.tokens} tokens; the budget renews at ${budget?.renews_at}`);
  const rows = await user.usage.list().take(10);
  say(`usage rows: ${rows.map((row) => `${row.model} ${row.outcome}`).join(', ')}`);
} finally {
  await admin.keys.revoke(made.id);
}

try {
  await new Flotilla({ url, api_key: made.key }).whoami();
} catch (error) {
  if (!(error instanceof FlotillaApiError)) throw error;
  say(`after its end: ${error.code}`);
}
