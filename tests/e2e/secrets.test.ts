import { createHash } from 'node:crypto';
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run as hand } from '../../packages/cli/src/testing/command.ts';
import { enrolRawNode } from '../support/raw-node.ts';
import { chatAnswer, chatChunk, DONE, type Handler, SSE } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';

/**
 * Promises P7 and P8: one world in which everything happens that may happen to a secret, a prompt or an answer, at the
 * most talkative log level; then every place that keeps or tells anything is searched.
 */
let world: World;
let node: TestNode;
/** What must be nowhere, by what it is. */
const secrets = new Map<string, string>();
const ids: { id: string; secret: string }[] = [];
/** Everything that clients were told when something was refused or failed. */
const errors: string[] = [];
/** Where things are kept and told, with their text. */
const places = new Map<string, string>();

const METRICS_TOKEN = 'metrics-token-Zq8vXk2m';
const BACKEND_KEY = 'sk-backend-Yw3nTr7p';
const PROVIDER_KEY = 'sk-provider-Uc6mGh2e';
const NEW_PROVIDER_KEY = 'sk-provider-Ja9rSv4d';
const SECRET_KEY = 'secret-key-that-seals-what-must-be-kept-Pf1b';
const PROMPT = 'PROMPT-what-nobody-else-may-read';
const ANSWER = 'ANSWER-what-only-its-client-gets';
const CONVERSATION = 'CONVERSATION-of-somebody';

/** Events of the backend's own. */
const said = new Set<string>();
const event = (text: string): string => {
  said.add(text.trim());
  return text;
};

const backend: Handler = ({ body }, response) => {
  const { user, stream } = JSON.parse(body.toString()) as { user?: string; stream?: boolean };
  const words = `${ANSWER} to ${body.toString()}`;
  switch (user) {
    case 'broken':
      return void response.writeHead(500).end(JSON.stringify({ error: { message: words } }));
    case 'busy':
      return void response.writeHead(429, { 'retry-after': '1' }).end(words);
    case 'refused':
      return void response.writeHead(401, { 'www-authenticate': 'Bearer' }).end(words);
    case 'nonsense':
      return void response.writeHead(200, { 'content-type': 'application/json' }).end(`<html>${words}`);
    case 'cut':
      response.writeHead(200, SSE);
      response.write(event(chatChunk(words)));
      return void setTimeout(() => response.destroy(), 50);
    case 'fault':
      response.writeHead(200, SSE);
      response.write(event(chatChunk(ANSWER)));
      return void response.end(event(`data: ${JSON.stringify({ error: { message: words } })}\n\n`));
    case 'silent':
      return;
    case undefined:
  }
  if (stream === true) {
    response.writeHead(200, SSE);
    return void response.end(chatChunk(ANSWER) + chatChunk('', 'stop') + DONE);
  }
  response.setHeader('content-type', 'application/json');
  response.end(chatAnswer(ANSWER));
};

beforeAll(async () => {
  world = await openWorld({
    env: {
      FLOTILLA_LOG_LEVEL: 'debug',
      FLOTILLA_METRICS_TOKEN: METRICS_TOKEN,
      FLOTILLA_SECRET_KEY: SECRET_KEY,
      FLOTILLA_RUN_TIMEOUT_MS: '2000',
    },
  });
  secrets.set('the admin key', world.plane.admin_key);
  secrets.set('the metrics token', METRICS_TOKEN);
  secrets.set("the backend's key", BACKEND_KEY);
  secrets.set("the provider's key", PROVIDER_KEY);
  secrets.set("the provider's new key", NEW_PROVIDER_KEY);
  secrets.set('the secret key', SECRET_KEY);
  secrets.set('a prompt', PROMPT);
  secrets.set('an answer', ANSWER);
  secrets.set('a conversation', CONVERSATION);
  await run();
  await gather();
}, 90_000);
afterAll(() => world.close());

/** Everything that may happen. */
async function run(): Promise<void> {
  const { url } = await world.backend(backend);
  node = await world.node({
    name: 'box',
    backends: [{ url, slots: 8, api_key: BACKEND_KEY }],
    env: { FLOTILLA_LOG_LEVEL: 'debug' },
  });
  const credential = await credentialOf(node);
  secrets.set("the node's credential", credential);
  ids.push({ id: node.id, secret: credential });
  secrets.set("the node's token", node.token);

  const key = await madeKey('used');
  await requests(key);
  await failures(key);
  await providers(key);
  await wrongCredentials();
  await nodeCredentials(credential);
}

async function madeKey(what: string): Promise<string> {
  const made = await world.plane.send<{ id: string; key: string }>('POST', '/api/v1/keys', { name: what });
  secrets.set(`the ${what} key`, made.key);
  ids.push({ id: made.id, secret: made.key });
  return made.key;
}

const messages = [{ role: 'user', content: PROMPT }];
const affine = { 'x-session-affinity': CONVERSATION };

async function requests(key: string): Promise<void> {
  for (const stream of [true, false]) {
    const reply = await world.plane.chat({ messages, stream, prompt_cache_key: CONVERSATION }, { key });
    expect(await reply.text()).toContain(ANSWER);
  }
  for (const [path, body] of [
    ['completions', { prompt: PROMPT }],
    ['embeddings', { input: PROMPT }],
  ] as const) {
    await fetch(`${world.plane.url}/v1/${path}`, {
      method: 'POST',
      headers: { 'x-api-key': key, ...affine },
      body: JSON.stringify({ model: 'scripted', ...body }),
    }).then(told);
  }
}

/** Each way in which a request can fail, with the prompt in every field that could be repeated. */
async function failures(key: string): Promise<void> {
  const broken = ['broken', 'busy', 'refused', 'nonsense', 'cut', 'fault'].map((user) =>
    world.plane.chat({ messages, user, stream: user !== 'nonsense' }, { key, headers: affine }).then(told),
  );
  await Promise.all(broken);
  // Its time is over, its client leaves, an operator ends it.
  await world.plane.chat({ messages, user: 'silent' }, { key }).then(told);
  const leaving = new AbortController();
  const left = world.plane.chat({ messages, user: 'silent' }, { key, signal: leaving.signal });
  await openJob();
  leaving.abort();
  await expect(left).rejects.toThrow(/abort/);
  await until('it is gone', async () => (await openJobs()).length === 0);
  const ended = world.plane.chat({ messages, user: 'silent', stream: true }, { key });
  await world.plane.send('POST', `/api/v1/jobs/${await openJob()}/cancel`);
  await ended.then(told);
  // Refused before it was a job.
  const chat = (body: string, headers: Record<string, string> = {}) =>
    fetch(`${world.plane.url}/v1/chat/completions`, {
      method: 'POST',
      headers: { authorization: `Bearer ${key}`, ...headers },
      body,
    }).then(told);
  await chat(`{"model":"scripted","messages":["${PROMPT}"`);
  await chat(JSON.stringify({ model: { name: PROMPT }, messages }));
  await chat(JSON.stringify({ model: 'scripted', messages: PROMPT }));
  await chat(JSON.stringify({ model: 'scripted', messages, stream: PROMPT }));
  await chat(JSON.stringify({ model: 'elsewhere', messages }));
  await chat(JSON.stringify({ model: 'scripted', messages, filler: 'x'.repeat(17 * 1024 * 1024) }));
  await chat(JSON.stringify({ model: 'scripted', messages }), { 'content-encoding': 'gzip' });
  for (const path of ['keys', 'enrolment-tokens']) {
    await world.plane.send('POST', `/api/v1/${path}`, { name: [PROMPT], labels: PROMPT }).catch(told);
  }
}

/** An upstream that says our key back in everything it refuses, asked in every way. */
async function providers(key: string): Promise<void> {
  const { url } = await world.backend((request, response) => {
    const { user } = JSON.parse(request.body.toString()) as { user?: string };
    const words = `${String(request.headers.authorization)} ${request.body.toString()}`;
    if (user === 'refused') return void response.writeHead(401, { 'www-authenticate': words }).end(words);
    return backend(request, response);
  });
  const made = await world.plane.send<{ id: string }>('POST', '/api/v1/providers', {
    name: 'upstream',
    base_url: url,
    api_key: PROVIDER_KEY,
  });
  await world.plane.send('POST', '/api/v1/routes', {
    name: 'routed',
    targets: [{ provider: 'upstream', model: 'scripted' }],
  });
  const ask = (user?: string) =>
    world.plane.chat({ model: 'routed', messages, user }, { key, headers: affine }).then(told);
  for (const user of [undefined, 'broken', 'nonsense', 'refused']) await ask(user);
  await world.plane.send('PATCH', `/api/v1/providers/${made.id}`, { api_key: NEW_PROVIDER_KEY });
  await ask();
  for (const bad of [
    { api_key: `${PROVIDER_KEY} \u0000` },
    { api_key: [PROVIDER_KEY] },
    { key_header: 'host' },
  ]) {
    await world.plane.send('PATCH', `/api/v1/providers/${made.id}`, bad).catch(told);
  }
  await world.plane.send('POST', `/api/v1/providers/${made.id}/probe`);
  places.set(
    'the explained route',
    JSON.stringify(await world.plane.send('POST', '/api/v1/routes/explain', { model: 'routed' })),
  );
}

async function wrongCredentials(): Promise<void> {
  const revoked = await madeKey('revoked');
  const found = ids.find(({ secret }) => secret === revoked)!;
  await world.plane.send('DELETE', `/api/v1/keys/${found.id}`);
  const wrong = {
    'a wrong key': 'flk_wrong-Hk3vWq9zLm2xRt5n',
    'a wrong node credential': 'fln_wrong-Bd8cFy4sPj6gVx1k',
    'a wrong token': 'fle_wrong-Nz7qTe3wXu9mKc2r',
  };
  for (const [what, secret] of Object.entries(wrong)) secrets.set(what, secret);
  const [wrong_key, wrong_node, wrong_token] = Object.values(wrong) as [string, string, string];
  // All at once: each refusal makes the next one from this address wait.
  const ways = (bad: string) => [
    world.plane.get('/api/v1/whoami', bad).catch(told),
    fetch(`${world.plane.url}/v1/models`, { headers: { 'x-api-key': bad } }).then(told),
    fetch(`${world.plane.url}/metrics`, { headers: { authorization: `Bearer ${bad}` } }).then(told),
    fetch(`${world.plane.url}/node/v1/link?token=${bad}`, {
      headers: { authorization: `Bearer ${bad}` },
    }).then(told),
    enrol(bad, 'nobody').then(told),
  ];
  await Promise.all([revoked, wrong_key, wrong_node, wrong_token].flatMap(ways));
  const token = await world.plane.send<{ id: string; token: string }>('POST', '/api/v1/enrolment-tokens', {});
  secrets.set('a token', token.token);
  ids.push({ id: token.id, secret: token.token });
  await enrol(token.token, 'box').then(told);
  const enrolled = (await (await enrol(token.token, 'second')).json()) as { id: string; credential: string };
  secrets.set("the second node's credential", enrolled.credential);
  ids.push({ id: enrolled.id, secret: enrolled.credential });
  await enrol(token.token, 'third').then(told);
}

function enrol(token: string, name: string): Promise<Response> {
  return fetch(`${world.plane.url}/node/v1/enrol`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ token, name }),
  });
}

async function nodeCredentials(credential: string): Promise<void> {
  const rotated = await world.plane.send<{ credential: string }>(
    'POST',
    `/api/v1/nodes/${node.id}/rotate`,
    {},
  );
  secrets.set('the new credential', rotated.credential);
  ids.push({ id: node.id, secret: rotated.credential });
  expect(rotated.credential).not.toBe(credential);
  const { epoch } = await node.view();
  const handed = await hand(['node', 'credential', '--state-dir', node.state_dir], {}, rotated.credential);
  places.set('what `node credential` printed', handed.stdout + handed.stderr);
  await until('it uses the new one', async () => (await node.view()).epoch > epoch);
  await node.restart();
  await until('it is back', async () => (await node.view()).state === 'online');
  const raw = await enrolRawNode(world, 'raw');
  secrets.set("the raw node's credential", raw.credential);
  const link = await raw.join();
  link.send(`{"type":"${raw.credential}"`);
  link.send({ type: 'job.failed', job: 'j', attempt: 1, code: 'internal', message: PROMPT, retryable: true });
  await link.refused({ type: PROMPT });
  await world.plane.send('POST', `/api/v1/nodes/${raw.id}/revoke`);
  await link.closed;
  await raw.dial().catch((error: unknown) => errors.push(String(error)));
}

/** Keeps what was refused; of a stream only what the backend has not said itself. */
async function told(reply: unknown): Promise<void> {
  if (!(reply instanceof Response)) {
    errors.push(String(reply));
    return;
  }
  const is_stream = reply.headers.get('content-type')?.startsWith('text/event-stream') === true;
  const text = await reply.text();
  if (reply.ok && !is_stream) return;
  const ours = text.split('\n').filter((line) => !said.has(line));
  errors.push(`${reply.status} ${JSON.stringify([...reply.headers])} ${ours.join('\n')}`);
}

interface Job {
  id: string;
  finished_at: string | null;
}
async function openJobs(): Promise<Job[]> {
  const { data } = await world.plane.get<{ data: Job[] }>('/api/v1/jobs?limit=100');
  return data.filter((job) => job.finished_at === null);
}
const openJob = () => until('it runs', async () => (await openJobs())[0]?.id);

async function credentialOf({ state_dir }: TestNode): Promise<string> {
  const text = await readFile(join(state_dir, 'credential'), 'utf8');
  return (JSON.parse(text) as { credential: string }).credential;
}

/** Reads every place, the running processes first, then what they leave behind. */
async function gather(): Promise<void> {
  for (const path of [
    'nodes',
    'jobs',
    'usage',
    'keys',
    'enrolment-tokens',
    'usage/summary',
    'providers',
    'routes',
    'audit',
  ]) {
    places.set(`/api/v1/${path}`, JSON.stringify(await world.plane.get(`/api/v1/${path}`)));
  }
  places.set('/metrics', await (await fetch(`${world.plane.url}/metrics`)).text());
  const { url } = JSON.parse(await readFile(join(node.state_dir, 'status.json'), 'utf8')) as { url: string };
  for (const path of ['status', 'metrics', 'readyz']) {
    places.set(`the daemon's /${path}`, await (await fetch(`${url}/${path}`)).text());
  }
  places.set('what clients were told', errors.join('\n'));
  await node.program().stop();
  await world.plane.program().stop();
  places.set('the log of the control plane', world.plane.output());
  places.set('the log of the node', node.output());
  for (const path of await filesUnder(world.dir)) {
    places.set(path.slice(world.dir.length + 1), await readFile(path, 'latin1'));
  }
  for (const [table, rows] of await dumpStore()) places.set(`the table ${table}`, rows);
}

async function filesUnder(dir: string): Promise<string[]> {
  const entries = await readdir(dir, { withFileTypes: true, recursive: true });
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
}

/** Every row of every table, as text. */
async function dumpStore(): Promise<Map<string, string>> {
  const { query, close } = await openStoreReader();
  const tables = new Map<string, string>();
  try {
    const names = await query("select tablename as text from pg_tables where schemaname = 'public'");
    for (const name of names) {
      tables.set(name, (await query(`select row_to_json(t)::text as text from "${name}" t`)).join('\n'));
    }
  } finally {
    await close();
  }
  return tables;
}

async function openStoreReader() {
  if (world.database_url !== undefined) {
    const client = new pg.Client({ connectionString: world.database_url });
    await client.connect();
    return {
      query: async (sql: string) => (await client.query<{ text: string }>(sql)).rows.map((row) => row.text),
      close: () => client.end(),
    };
  }
  const { PGlite } = await import('@electric-sql/pglite');
  const pglite = await PGlite.create(join(world.dir, 'plane', 'store'));
  return {
    query: async (sql: string) => (await pglite.query<{ text: string }>(sql)).rows.map((row) => row.text),
    close: () => pglite.close(),
  };
}

/** Where a secret may be: its owner's own file. */
const OWN_FILE: Record<string, string> = {
  'the new credential': 'node-box/credential',
  "the backend's key": 'node-box/node.yaml',
};

describe('after everything that may happen', () => {
  it('there was something to find, and every place was looked at', () => {
    expect(secrets.size).toBeGreaterThan(15);
    expect(errors.length).toBeGreaterThan(30);
    const names = [...places.keys()].join('\n');
    for (const name of ['heartbeat.json', 'registry.json', 'the table jobs', 'the table usage', 'api_keys']) {
      expect(names).toContain(name);
    }
    expect(places.get('the log of the control plane')).toContain('"level":"debug"');
    expect(places.get('the table providers')).toContain('"key_sealed":"v1.');
    expect(places.get('the table usage')!.split('\n').length).toBeGreaterThan(10);
    expect(places.get('the table attempts')!.split('\n').length).toBeGreaterThan(10);
  });

  it('no credential, prompt or answer is anywhere', () => {
    const found: string[] = [];
    for (const [place, text] of places) {
      for (const [what, secret] of secrets) {
        if (OWN_FILE[what] !== place && text.includes(secret))
          found.push(`${what} in ${place}: ${around(text, secret)}`);
      }
    }
    expect(found).toEqual([]);
  });

  it('what the store knows of credentials are their hashes', () => {
    const kept = ['api_keys', 'enrolment_tokens', 'node_credentials']
      .map((table) => places.get(`the table ${table}`) ?? '')
      .join('\n');
    for (const { secret } of ids) {
      if (secret.startsWith('fle_')) continue; // used up
      expect(kept).toContain(createHash('sha256').update(secret).digest('hex'));
    }
  });

  it('ids share nothing with secrets', () => {
    for (const { secret } of ids) {
      for (const { id } of ids) {
        const random = id.split('_')[1]!.slice(10);
        for (let at = 0; at + 5 <= random.length; at++) {
          expect(secret.toUpperCase()).not.toContain(random.slice(at, at + 5));
        }
      }
    }
    expect(new Set(ids.map(({ secret }) => secret)).size).toBe(ids.length);
  });

  it("the files that hold secrets are their owner's alone", async () => {
    const { mode } = await stat(join(node.state_dir, 'credential'));
    expect(mode & 0o777).toBe(0o600);
  });

  it('no client is told where a backend is, or what runs on a node', () => {
    expect(errors.join('\n')).not.toMatch(/127\.0\.0\.1|ECONN|node_modules|\.ts:\d/);
  });
});

function around(text: string, secret: string): string {
  const at = text.indexOf(secret);
  return text.slice(Math.max(0, at - 80), at + secret.length + 40);
}
