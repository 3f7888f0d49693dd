import { type JobBatchVerdicts, type KeyView, ROUTES, type Route, type RouteName } from '@flotilla/protocol';
import { once } from 'node:events';
import { connect } from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { systemRandom } from '../../packages/control/src/clock.ts';
import { memoryLog } from '../../packages/control/src/testing/memory-log.ts';
import { errorOf, openPlane, type TestPlane, type TestReply } from '../support/plane.ts';

/** What the HTTP surface does with what it is sent, good and bad, on a real socket and a real store. */
const BODY_LIMIT_BYTES = 64 * 1024;
let plane: TestPlane;
let admin: string;

const log = memoryLog();
/** Of what is drawn from here on, the draws before the one that fails; none: all is well. */
let draws_left = Infinity;

beforeAll(async () => {
  const bytes = (length: number) => {
    if (draws_left-- === 0) throw new Error('nothing to draw from');
    return systemRandom.bytes(length);
  };
  const settings = {
    FLOTILLA_BODY_LIMIT_BYTES: String(BODY_LIMIT_BYTES),
    FLOTILLA_PUBLIC_URL: 'https://fleet.example',
  };
  plane = await openPlane(settings, log, { ...systemRandom, bytes });
  admin = plane.admin_key;
});
afterAll(() => plane.close());

const as = <T>(reply: TestReply): T => reply.json as unknown as T;

async function makeKey(body: Record<string, unknown> = {}): Promise<KeyView & { key: string }> {
  const reply = await plane.call('POST', '/api/v1/keys', { key: admin, body: { name: 'test', ...body } });
  expect(reply).toMatchObject({ status: 201 });
  return as(reply);
}

describe('malformed input', () => {
  // Those of nodes take no key: http-node.test.ts asks the same of them.
  const routes = Object.entries(ROUTES as Record<RouteName, Route>)
    .map(([name, route]) => ({ name, ...route }))
    .filter(({ needs }) => needs !== 'node');
  const send = ({ method, path }: Route, more: { id?: string; query?: string; body?: unknown } = {}) =>
    plane.call(method, `${path.replace(':id', more.id ?? 'x')}${more.query ?? ''}`, {
      key: admin,
      body: more.body,
    });

  test.each(routes.filter(({ params }) => params !== undefined))('$name: ids', async (route) => {
    for (const id of ['nonsense', '%20', 'a%2Fb', 'job_0000000000000000000000000O', "';--"]) {
      expect(errorOf(await send(route, { id }))).toBe('404 not_found');
    }
    expect(errorOf(await send(route, { id: 'x'.repeat(129) }))).toBe('400 invalid_request id');
  });

  test.each(routes.filter(({ body }) => body !== undefined))('$name: bodies', async (route) => {
    for (const body of ['{"a":', '[]', '"text"', '1', 'null', '\uFEFF{}x']) {
      expect(errorOf(await send(route, { body }))).toBe('400 invalid_request');
    }
  });

  test.each(routes.filter(({ query }) => query?.shape['limit'] !== undefined))(
    '$name: pages',
    async (route) => {
      for (const query of ['?limit=0', '?limit=501', '?limit=x', '?limit=1.5', '?limit=1&limit=2']) {
        expect(errorOf(await send(route, { query }))).toBe('400 invalid_request limit');
      }
      expect(errorOf(await send(route, { query: `?after=${'x'.repeat(257)}` }))).toBe(
        '400 invalid_request after',
      );
    },
  );

  test.each([
    ['POST', '/api/v1/keys', {}, 'name'],
    ['POST', '/api/v1/keys', { name: 'a', scopes: ['root'] }, 'scopes.0'],
    ['POST', '/api/v1/keys', { name: 'a', scops: ['jobs'] }, 'scops'],
    ['POST', '/api/v1/keys', { name: 'a', requests_per_minute: 0 }, 'requests_per_minute'],
    ['POST', '/api/v1/keys', { name: 'a', expires_at: 'tomorrow' }, 'expires_at'],
    ['POST', '/api/v1/keys', { name: 'a', expires_at: '2020-01-01T00:00:00Z' }, 'expires_at'],
    ['POST', '/api/v1/enrolment-tokens', { ttl_ms: -1 }, 'ttl_ms'],
    ['POST', '/api/v1/enrolment-tokens', { labels: { '': 'x' } }, 'labels.'],
    ['POST', '/node/v1/enrol', { token: 'fle_x', name: 'no spaces' }, 'name'],
    ['POST', '/v1/chat/completions', { messages: [] }, 'model'],
    ['POST', '/v1/chat/completions', { model: 7, messages: [] }, 'model'],
    ['POST', '/v1/chat/completions', { model: 'm', messages: [], stream: 'yes' }, 'stream'],
    ['GET', '/api/v1/jobs?after=nonsense', undefined, 'after'],
    ['GET', '/api/v1/jobs?state=lost', undefined, 'state'],
    ['GET', '/api/v1/usage?since=yesterday', undefined, 'since'],
    ['GET', '/api/v1/usage/summary?by=colour', undefined, 'by'],
  ])('%s %s %j names %s', async (method, path, body, param) => {
    expect(errorOf(await plane.call(method, path, { key: admin, body }))).toBe(
      `400 invalid_request ${param}`,
    );
  });

  test('a body in another type, or encoded, is told how to come', async () => {
    const form = {
      key: admin,
      body: 'name=a',
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
    };
    const refused = await plane.call('POST', '/api/v1/keys', form);
    expect(errorOf(refused)).toBe('415 invalid_request');
    expect(refused.json.error.message).toMatch(/application\/json/);
    const zipped = { key: admin, body: '{}', headers: { 'content-encoding': 'gzip' } };
    expect(errorOf(await plane.call('POST', '/v1/chat/completions', zipped))).toBe('415 invalid_request');
  });

  test('a body above the limit is refused, and its sender gets to know', async () => {
    const body = JSON.stringify({ model: 'm', messages: [{ content: 'x'.repeat(10 * BODY_LIMIT_BYTES) }] });
    expect(errorOf(await plane.call('POST', '/v1/chat/completions', { key: admin, body }))).toBe(
      '413 payload_too_large',
    );
    const large = JSON.stringify({ name: 'x'.repeat(2 * 1024 * 1024) });
    expect(errorOf(await plane.call('POST', '/api/v1/keys', { key: admin, body: large }))).toBe(
      '413 payload_too_large',
    );
  });

  test('an OpenAI request may come with any content type', async () => {
    const request = {
      key: admin,
      body: '{"model":"m","messages":[]}',
      headers: { 'content-type': 'text/plain' },
    };
    expect(errorOf(await plane.call('POST', '/v1/chat/completions', request))).toBe(
      '404 model_not_found model',
    );
  });
});

test('a fault of ours at one job of a batch is told of that one, and logged; its neighbours are accepted', async () => {
  const targets = [{ model: 'not-there-yet' }];
  await plane.call('POST', '/api/v1/routes', { key: admin, body: { name: 'later', targets } });
  const jobs = Array.from({ length: 3 }, () => ({ model: 'later', request: { messages: [] } }));
  draws_left = 1; // each job draws an id
  const headers = { 'x-request-id': 'of-a-batch' };
  const reply = await plane.call('POST', '/api/v1/jobs/batch', { key: admin, body: { jobs }, headers });
  expect(as<JobBatchVerdicts>(reply).data).toMatchObject([
    { state: 'queued' },
    { error: { code: 'internal', message: expect.stringContaining('request id') } },
    { state: 'queued' },
  ]);
  const logged = log.lines.filter(({ fields }) => fields['request_id'] === 'of-a-batch');
  expect(logged).toMatchObject([
    { level: 'error', fields: { error: expect.objectContaining({ message: 'nothing to draw from' }) } },
  ]);
});

describe('a path', () => {
  test('that does not exist is a 404 in the one shape, known to nobody', async () => {
    expect(errorOf(await plane.call('GET', '/nothing'))).toBe('404 not_found');
    const unknown = await plane.call('POST', '/v1/responses', { body: { model: 'm' } });
    expect(errorOf(unknown)).toBe('404 not_found');
    expect(unknown.json.error.message).toContain('POST /v1/chat/completions');
  });

  test('with another method is a 405 that says which', async () => {
    const refused = await plane.call('GET', '/v1/chat/completions');
    expect(errorOf(refused)).toBe('405 invalid_request');
    expect(refused.headers.get('allow')).toBe('POST');
  });

  test('may end in a slash or have two, as base addresses are joined', async () => {
    for (const path of ['/v1/models/', '//v1/models', '/v1//models']) {
      expect(await plane.call('GET', path, { key: admin })).toMatchObject({ status: 200 });
    }
  });

  test('that cannot be decoded is refused', async () => {
    expect(errorOf(await plane.call('GET', '/api/v1/keys/%zz', { key: admin }))).toBe('400 invalid_request');
  });
});

describe('every reply', () => {
  test('carries the request id of the client, if it is sane, else a new one', async () => {
    const id = async (given: string, path = '/healthz') =>
      (await plane.call('GET', path, { headers: { 'x-request-id': given } })).headers.get('x-request-id');
    expect(await id('trace-1/a:b')).toBe('trace-1/a:b');
    expect(await id('trace-2', '/nothing')).toBe('trace-2');
    expect(await id('has spaces')).toMatch(/^req_[0-9A-Z]{26}$/);
    expect(await id('x'.repeat(129))).toMatch(/^req_/);
  });

  test.each([
    ['GET', '/api/v1/keys'],
    ['GET', '/api/v1/pulse'],
    ['HEAD', '/api/v1/pulse'],
    ['HEAD', '/api/v1/backup'],
    ['GET', '/nothing'],
  ])('forbids guessing its type and keeping it: %s %s', async (method, path) => {
    const { headers } = await plane.call(method, path, { key: admin });
    expect(headers.get('x-content-type-options')).toBe('nosniff');
    expect(headers.get('cache-control')).toBe('no-store');
  });

  test('tells whether it is worth another try', async () => {
    const { headers } = await plane.call('GET', '/v1/models');
    expect(headers.get('x-should-retry')).toBe('false');
    expect(headers.get('www-authenticate')).toBe('Bearer');
  });
});

describe('what is not HTTP', () => {
  /** Everything the server says before it hangs up. */
  function say(bytes: string): Promise<{ status: number; error: { code: string } }> {
    const { promise, resolve, reject } = Promise.withResolvers<{ status: number; error: { code: string } }>();
    const socket = connect(plane.control.port, '127.0.0.1', () => socket.write(bytes));
    let text = '';
    socket.setEncoding('utf8').on('data', (more: string) => (text += more));
    socket.on('error', reject).on('close', () => {
      const [head = '', body = ''] = text.split('\r\n\r\n');
      expect(head).toMatch(/x-request-id: req_/);
      resolve({ status: Number(head.split(' ')[1]), ...(JSON.parse(body) as { error: { code: string } }) });
    });
    return promise;
  }

  test('is refused in the one shape', async () => {
    expect(await say('nonsense\r\n\r\n')).toMatchObject({ status: 400, error: { code: 'invalid_request' } });
  });

  test('headers without end are refused', async () => {
    const huge = `GET / HTTP/1.1\r\nhost: a\r\nx: ${'y'.repeat(20_000)}\r\n\r\n`;
    expect(await say(huge)).toMatchObject({ status: 431, error: { code: 'invalid_request' } });
  });
});

test('a request that offers an upgrade to HTTP/2 is answered as it is', async () => {
  const socket = connect(plane.control.port, '127.0.0.1');
  socket.write('GET /healthz HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: Upgrade, close\r\n\r\n');
  const [answer] = (await once(socket, 'data')) as [Buffer];
  socket.destroy();
  expect(answer.toString()).toMatch(/^HTTP\/1.1 200 OK\r\n/);
});

describe('a key', () => {
  const models = (key: string) => plane.call('GET', '/v1/models', { key });

  test('works at once, is shown once, and its hash never', async () => {
    const made = await makeKey({ name: 'once' });
    expect(made.key).toMatch(/^flk_[\w-]{43}$/);
    expect((await models(made.key)).status).toBe(200);
    const shown = await plane.call('GET', `/api/v1/keys/${made.id}`, { key: admin });
    expect(as<KeyView>(shown)).toMatchObject({ name: 'once', last_used_at: expect.stringMatching(/Z$/) });
    const list = await plane.call('GET', '/api/v1/keys', { key: admin });
    for (const reply of [shown, list]) expect(reply.text).not.toMatch(/hash|flk_/);
  });

  test('that is revoked stops at once, for good, and stays in the list', async () => {
    const made = await makeKey();
    const revoke = () => plane.call('DELETE', `/api/v1/keys/${made.id}`, { key: admin });
    const { revoked_at } = as<KeyView>(await revoke());
    expect(errorOf(await models(made.key))).toBe('403 revoked');
    expect(as<KeyView>(await revoke()).revoked_at).toBe(revoked_at);
    const list = as<{ data: KeyView[] }>(await plane.call('GET', '/api/v1/keys', { key: admin }));
    expect(list.data.find((key) => key.id === made.id)?.revoked_at).toBe(revoked_at);
  });

  test('changes only in what is sent, and null lifts a limit', async () => {
    const made = await makeKey({
      scopes: ['jobs'],
      allowed_models: ['a*'],
      concurrency: 2,
      requests_per_minute: 5,
    });
    const update = async (body: object) =>
      as<KeyView>(await plane.call('PATCH', `/api/v1/keys/${made.id}`, { key: admin, body }));
    const { key: _key, last_used_at: _used, ...view } = made;
    expect(await update({ name: 'renamed' })).toMatchObject({ ...view, name: 'renamed' });
    expect(await update({ concurrency: null })).toMatchObject({ concurrency: null, requests_per_minute: 5 });
    expect(await update({})).toMatchObject({ name: 'renamed', scopes: ['jobs'], allowed_models: ['a*'] });
  });

  test('with new rights has them at once', async () => {
    const made = await makeKey({ scopes: ['jobs'] });
    expect(errorOf(await models(made.key))).toBe('403 forbidden');
    await plane.call('PATCH', `/api/v1/keys/${made.id}`, { key: admin, body: { scopes: ['inference'] } });
    expect((await models(made.key)).status).toBe(200);
  });

  test('knows itself', async () => {
    const made = await makeKey({ name: 'me', scopes: ['agents'] });
    const who = await plane.call('GET', '/api/v1/whoami', { key: made.key });
    expect(who.json).toEqual({ id: made.id, name: 'me', role: null, scopes: ['agents'] });
  });

  test('sees its own usage, and no other key’s', async () => {
    const made = await makeKey();
    const usage = (query: string) => plane.call('GET', `/api/v1/usage${query}`, { key: made.key });
    expect((await usage(`?key=${made.id}`)).status).toBe(200);
    expect(errorOf(await usage('?key=key_00000000000000000000000000'))).toBe('404 not_found');
    expect(errorOf(await usage('/summary?by=node'))).toBe('403 forbidden by');
  });

  test('pages through all of them, newest first, none twice', async () => {
    for (let n = 0; n < 3; n++) await makeKey({ name: `page-${n}` });
    const found: KeyView[] = [];
    let after: string | null = null;
    do {
      const query: string = after === null ? '' : `&after=${after}`;
      const reply = await plane.call('GET', `/api/v1/keys?limit=2${query}`, { key: admin });
      const page = as<{ data: KeyView[]; next_after: string | null }>(reply);
      found.push(...page.data);
      after = page.next_after;
    } while (after !== null);
    const ids = found.map((key) => key.id);
    expect(new Set(ids).size).toBe(ids.length);
    expect(ids).toEqual([...ids].sort().reverse());
    expect(found.map((key) => key.name)).toEqual(expect.arrayContaining(['page-0', 'page-1', 'page-2']));
  });
});

describe('an enrolment token', () => {
  test('is listed until it is used up or withdrawn, and never shown again', async () => {
    const make = async () =>
      as<{ id: string; token: string }>(await plane.call('POST', '/api/v1/enrolment-tokens', { key: admin }));
    const list = async () => {
      const reply = await plane.call('GET', '/api/v1/enrolment-tokens', { key: admin });
      expect(reply.text).not.toMatch(/hash|fle_/);
      return as<{ data: { id: string }[] }>(reply).data.map((token) => token.id);
    };
    const [used, withdrawn] = [await make(), await make()];
    expect(await list()).toEqual([withdrawn.id, used.id]);
    const enrol = await plane.call('POST', '/node/v1/enrol', { body: { token: used.token, name: 'box' } });
    expect(enrol.status).toBe(201);
    const remove = () => plane.call('DELETE', `/api/v1/enrolment-tokens/${withdrawn.id}`, { key: admin });
    expect((await remove()).status).toBe(204);
    expect(errorOf(await remove())).toBe('404 not_found');
    expect(await list()).toEqual([]);
  });

  test('says where to join, and makes a node that is in the roster at once; names are taken once', async () => {
    const body = { max_uses: 2, labels: { site: 'home' } };
    const made = await plane.call('POST', '/api/v1/enrolment-tokens', { key: admin, body });
    const { token, public_url } = as<{ token: string; public_url: string | null }>(made);
    expect(public_url).toBe('https://fleet.example');
    const enrol = () => plane.call('POST', '/node/v1/enrol', { body: { token, name: 'attic' } });
    const { id } = as<{ id: string }>(await enrol());
    const node = await plane.call('GET', `/api/v1/nodes/${id}`, { key: admin });
    expect(node.json).toMatchObject({ name: 'attic', state: 'pending', labels: { site: 'home' } });
    expect(errorOf(await enrol())).toBe('409 name_taken name');
  });
});
