import { Flotilla } from '@flotilla/sdk';

// Work that nobody waits for on a connection: submitted once, done when a machine has time for it, read when it is done.
const { FLOTILLA_URL: url = 'http://127.0.0.1:7400', FLOTILLA_API_KEY: api_key = '' } = process.env;
const flotilla = new Flotilla({ url, api_key });
const say = (line: string) => process.stdout.write(`${line}\n`);

const model = process.env['FLOTILLA_MODEL'] ?? (await flotilla.models.list())[0]?.id;
if (model === undefined) throw new Error('No node offers a model yet: see `flotilla nodes`.');

// The key makes the call safe to repeat: with the same one, the same body is one job.
const { id, state } = await flotilla.jobs.submit(
  {
    model,
    request: { messages: [{ role: 'user', content: 'Name three uses of a fleet of machines.' }] },
    metadata: { example: 'jobs' },
  },
  { idempotency_key: `example-${Date.now()}` },
);
say(`submitted: ${state}`);

// Each step until the end; `flotilla.jobs.wait(id)` is the same without the steps.
for await (const job of flotilla.jobs.watch(id)) if (job.finished_at !== null) say(`ended: ${job.state}`);
const answer = (await flotilla.jobs.result(id)) as { choices: { message: { content: string } }[] };
say(`result: ${answer.choices[0]?.message.content}`);

// A batch gives each job its own verdict.
const verdicts = await flotilla.jobs.submitBatch([
  { model, request: { messages: [{ role: 'user', content: 'One.' }] } },
  { model: 'nobody-has-it', request: { messages: [{ role: 'user', content: 'Two.' }] } },
]);
for (const verdict of verdicts) {
  if ('error' in verdict) say(`refused: ${verdict.error.code}`);
  else say(`ended: ${(await flotilla.jobs.wait(verdict.id)).state}`);
}

// Request and result go by themselves after a day; this is at once.
await flotilla.jobs.delete(id);
