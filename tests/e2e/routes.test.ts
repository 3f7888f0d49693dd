import { type AuditView, type Needs, ROUTES, type Route, type RouteName, SCOPES } from '@flotilla/protocol';
import { request as httpRequest } from 'node:http';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { errorOf, openPlane, type TestPlane } from '../support/plane.ts';

/**
 * Who may call what, route by route. A route of the protocol without a row here fails the test, and so does a row
 * without a route; the server cannot be started with a route that the protocol does not have.
 */
interface Row {
  needs: Needs;
  /** A path that the route serves; nothing need exist there. */
  path: string;
  body?: unknown;
  /** What the right credential gets. */
  right: number;
}

const KEY = '/api/v1/keys/key_00000000000000000000000000';
const TOKEN = '/api/v1/enrolment-tokens/enr_00000000000000000000000000';
const NODE = '/api/v1/nodes/node_00000000000000000000000000';
const PROVIDER = '/api/v1/providers/prv_00000000000000000000000000';
const ROUTE = '/api/v1/routes/rte_00000000000000000000000000';
const upstream = { name: 'up', base_url: 'http://127.0.0.1:9/v1', enabled: false };
const JOB = '/api/v1/jobs/job_00000000000000000000000000';
const ATTEMPT = '/node/v1/jobs/job_00000000000000000000000000/attempts/1';
const NO_SESSION = '?session=none';
const chat = { model: 'nobody-has-it', messages: [] };

const TABLE: Record<RouteName, Row> = {
  healthz: { needs: 'none', path: '/healthz', right: 200 },
  readyz: { needs: 'none', path: '/readyz', right: 200 },
  metrics: { needs: 'metrics', path: '/metrics', right: 200 },
  openapi: { needs: 'none', path: '/openapi.json', right: 200 },
  models: { needs: 'inference', path: '/v1/models', right: 200 },
  model: { needs: 'inference', path: '/v1/models/org/model', right: 404 },
  chat: { needs: 'inference', path: '/v1/chat/completions', body: chat, right: 404 },
  completions: { needs: 'inference', path: '/v1/completions', body: chat, right: 404 },
  embeddings: { needs: 'inference', path: '/v1/embeddings', body: chat, right: 404 },
  whoami: { needs: 'key', path: '/api/v1/whoami', right: 200 },
  listKeys: { needs: 'admin', path: '/api/v1/keys', right: 200 },
  createKey: { needs: 'admin', path: '/api/v1/keys', body: { name: 'made' }, right: 201 },
  showKey: { needs: 'admin', path: KEY, right: 404 },
  updateKey: { needs: 'admin', path: KEY, body: { name: 'x' }, right: 404 },
  revokeKey: { needs: 'admin', path: KEY, right: 404 },
  listTokens: { needs: 'admin', path: '/api/v1/enrolment-tokens', right: 200 },
  createToken: { needs: 'admin', path: '/api/v1/enrolment-tokens', right: 201 },
  deleteToken: { needs: 'admin', path: TOKEN, right: 404 },
  listNodes: { needs: 'nodes:read', path: '/api/v1/nodes', right: 200 },
  showNode: { needs: 'nodes:read', path: NODE, right: 404 },
  updateNode: { needs: 'admin', path: NODE, body: {}, right: 404 },
  cordonNode: { needs: 'admin', path: `${NODE}/cordon`, right: 404 },
  uncordonNode: { needs: 'admin', path: `${NODE}/uncordon`, right: 404 },
  drainNode: { needs: 'admin', path: `${NODE}/drain`, right: 404 },
  rotateNode: { needs: 'admin', path: `${NODE}/rotate`, right: 404 },
  revokeNode: { needs: 'admin', path: `${NODE}/revoke`, right: 404 },
  deleteNode: { needs: 'admin', path: NODE, right: 404 },
  discoverModels: { needs: 'nodes:read', path: `${NODE}/model-discoveries`, right: 404 },
  showDiscovery: {
    needs: 'nodes:read',
    path: '/api/v1/model-discoveries/disc_00000000000000000000000000',
    right: 404,
  },
  nodeModels: { needs: 'nodes:read', path: `${NODE}/models`, right: 404 },
  listProviders: { needs: 'admin', path: '/api/v1/providers', right: 200 },
  createProvider: { needs: 'admin', path: '/api/v1/providers', body: upstream, right: 201 },
  showProvider: { needs: 'admin', path: PROVIDER, right: 404 },
  updateProvider: { needs: 'admin', path: PROVIDER, body: {}, right: 404 },
  probeProvider: { needs: 'admin', path: `${PROVIDER}/probe`, right: 404 },
  deleteProvider: { needs: 'admin', path: PROVIDER, right: 404 },
  listRoutes: { needs: 'admin', path: '/api/v1/routes', right: 200 },
  createRoute: {
    needs: 'admin',
    path: '/api/v1/routes',
    body: { name: 'public', targets: [{ model: 'm' }] },
    right: 201,
  },
  explainRoute: { needs: 'admin', path: '/api/v1/routes/explain', body: { model: 'm' }, right: 200 },
  showRoute: { needs: 'admin', path: ROUTE, right: 404 },
  updateRoute: { needs: 'admin', path: ROUTE, body: {}, right: 404 },
  deleteRoute: { needs: 'admin', path: ROUTE, right: 404 },
  listJobs: { needs: 'jobs', path: '/api/v1/jobs', right: 200 },
  createJob: {
    needs: 'jobs',
    path: '/api/v1/jobs',
    body: { model: 'nobody-has-it', request: chat },
    right: 404,
  },
  createJobs: { needs: 'jobs', path: '/api/v1/jobs/batch', body: { jobs: [{}] }, right: 200 },
  jobResult: { needs: 'jobs', path: `${JOB}/result`, right: 404 },
  jobEvents: { needs: 'jobs', path: `${JOB}/events`, right: 404 },
  deleteJob: { needs: 'jobs', path: JOB, right: 404 },
  showJob: { needs: 'jobs', path: JOB, right: 404 },
  explainJob: { needs: 'jobs', path: `${JOB}/explain`, right: 404 },
  cancelJob: { needs: 'jobs', path: `${JOB}/cancel`, right: 404 },
  usage: { needs: 'key', path: '/api/v1/usage', right: 200 },
  usageLimits: { needs: 'key', path: '/api/v1/usage/limits', right: 200 },
  usageSummary: { needs: 'key', path: '/api/v1/usage/summary', right: 200 },
  listAudit: { needs: 'admin', path: '/api/v1/audit', right: 200 },
  pulse: { needs: 'key', path: '/api/v1/pulse', right: 200 },
  backup: { needs: 'admin', path: '/api/v1/backup', right: 200 },
  enrol: {
    needs: 'enrolment',
    path: '/node/v1/enrol',
    body: { token: 'fle_wrong', name: 'box' },
    right: 201,
  },
  link: { needs: 'node', path: '/node/v1/link', right: 426 },
  nodeRegister: {
    needs: 'node',
    path: '/node/v1/register',
    body: { boot_id: 'boot-1', models: [] },
    right: 200,
  },
  nodeHeartbeat: { needs: 'node', path: `/node/v1/heartbeat${NO_SESSION}`, right: 409 },
  nodeDeregister: { needs: 'node', path: `/node/v1/deregister${NO_SESSION}`, right: 409 },
  nodeLease: { needs: 'node', path: `/node/v1/lease${NO_SESSION}`, right: 409 },
  nodeRequest: { needs: 'node', path: `${ATTEMPT}/request${NO_SESSION}`, right: 409 },
  nodeAccept: { needs: 'node', path: `${ATTEMPT}/accept${NO_SESSION}`, right: 409 },
  nodeReject: { needs: 'node', path: `${ATTEMPT}/reject${NO_SESSION}`, right: 409 },
  nodeStarted: { needs: 'node', path: `${ATTEMPT}/started${NO_SESSION}`, right: 409 },
  nodeOutput: { needs: 'node', path: `${ATTEMPT}/output${NO_SESSION}`, right: 409 },
  nodeComplete: { needs: 'node', path: `${ATTEMPT}/complete${NO_SESSION}`, right: 409 },
  nodeFail: { needs: 'node', path: `${ATTEMPT}/fail${NO_SESSION}`, right: 409 },
  nodeReleased: { needs: 'node', path: `${ATTEMPT}/released${NO_SESSION}`, right: 409 },
};
const names = Object.keys(TABLE) as RouteName[];
/** Their credential is an API key, and the server decides before it looks at anything else. */
const KEYED: readonly Needs[] = ['key', 'admin', ...SCOPES];
const keyed = names.filter((name) => KEYED.includes(TABLE[name].needs));

const METRICS_TOKEN = 'm'.repeat(32);
let plane: TestPlane;
let scoped: Record<string, string>;

beforeAll(async () => {
  plane = await openPlane({ FLOTILLA_METRICS_TOKEN: METRICS_TOKEN });
  const sets = {
    none: ['agents'],
    all: [...SCOPES],
    ...Object.fromEntries(SCOPES.map((scope) => [scope, [scope]])),
  };
  const made = await Promise.all(
    Object.entries(sets).map(async ([name, scopes]) => [name, await makeKey(scopes)] as const),
  );
  scoped = Object.fromEntries(made);
});
afterAll(() => plane.close());

async function makeKey(scopes: readonly string[]): Promise<string> {
  const reply = await plane.call('POST', '/api/v1/keys', {
    key: plane.admin_key,
    body: { name: 'test', scopes },
  });
  expect(reply.status).toBe(201);
  return (reply.json as unknown as { key: string }).key;
}

/** What each route answers to a credential: its status, or the refusal. All asked at once, so refusals wait together. */
async function statuses(routes: readonly RouteName[], keyOf: (row: Row) => string | undefined) {
  const replies = await Promise.all(
    routes.map(async (name) => {
      const { path, body } = TABLE[name];
      const reply = await plane.call(ROUTES[name].method, path, { key: keyOf(TABLE[name]), body });
      const refused = reply.status === 401 || reply.status === 403;
      return [name, refused ? errorOf(reply) : reply.status] as const;
    }),
  );
  return Object.fromEntries(replies);
}

function every(routes: readonly RouteName[], status: string | ((row: Row) => number)) {
  return Object.fromEntries(
    routes.map((name) => [name, typeof status === 'string' ? status : status(TABLE[name])]),
  );
}

describe('every route', () => {
  test('has a row here, and needs what the row says', () => {
    const needed = Object.fromEntries(Object.entries(ROUTES).map(([name, { needs }]) => [name, needs]));
    expect(Object.fromEntries(names.map((name) => [name, TABLE[name].needs]))).toEqual(needed);
  });

  test('is served: none is answered as a path that does not exist', async () => {
    const unserved: string[] = [];
    for (const name of names) {
      const reply = await plane.call(ROUTES[name].method, TABLE[name].path);
      if (reply.status === 405 || reply.text.includes('There is no /')) unserved.push(name);
    }
    expect(unserved).toEqual([]);
  });
});

describe('a route that needs an API key', () => {
  test('refuses who shows none', async () => {
    expect(await statuses(keyed, () => undefined)).toEqual(every(keyed, '401 unauthorized'));
  });

  test('refuses a key that lacks the scope, or is no admin’s', async () => {
    const limited = keyed.filter((name) => TABLE[name].needs !== 'key');
    const wrong = ({ needs }: Row) =>
      needs === 'admin' ? scoped['all'] : needs === 'agents' ? scoped['jobs'] : scoped['none'];
    expect(await statuses(limited, wrong)).toEqual(every(limited, '403 forbidden'));
  });

  test('serves a key with just the scope', async () => {
    const open = keyed.filter((name) => TABLE[name].needs !== 'admin');
    const right = ({ needs }: Row) => (needs === 'key' ? scoped['none'] : scoped[needs]);
    expect(await statuses(open, right)).toEqual(every(open, (row) => row.right));
  });

  test('serves an admin', async () => {
    expect(await statuses(keyed, () => plane.admin_key)).toEqual(every(keyed, (row) => row.right));
  });

  test('leaves a row of the audit where it is an act of administration, done or refused', async () => {
    const acts = keyed.filter((name) => (ROUTES[name] as Route).audit && TABLE[name].right !== 400);
    await statuses(acts, () => plane.admin_key);
    const reply = await plane.call('GET', '/api/v1/audit?limit=500', { key: plane.admin_key });
    const { data } = reply.json as unknown as { data: AuditView[] };
    const recorded = new Set(data.map(({ action }) => action));
    expect(acts.filter((name) => !recorded.has(String((ROUTES[name] as Route).audit)))).toEqual([]);
  });

  test('takes the key from x-api-key too', async () => {
    const reply = await plane.call('GET', '/v1/models', { headers: { 'x-api-key': plane.admin_key } });
    expect(reply.status).toBe(200);
  });

  test('does not take the credential of a node, or an enrolment token, and says what it is', async () => {
    for (const [credential, what] of [
      [`fln_${'w'.repeat(43)}`, /node/],
      [`fle_${'w'.repeat(43)}`, /enrolment token/],
    ] as const) {
      const reply = await plane.call('GET', '/v1/models', { key: credential });
      expect(errorOf(reply)).toBe('401 unauthorized');
      expect(reply.json.error.message).toMatch(what);
    }
  });
});

describe('a route that needs nothing', () => {
  test('serves everybody', async () => {
    const open = names.filter((name) => TABLE[name].needs === 'none');
    const expected = every(open, (row) => row.right);
    expect(await statuses(open, () => undefined)).toEqual(expected);
    expect(await statuses(open, () => 'nonsense')).toEqual(expected);
  });
});

describe('metrics', () => {
  const far = { 'x-forwarded-for': '10.0.0.1' };

  test('are for this machine itself, and for who has the token', async () => {
    expect((await plane.call('GET', '/metrics')).text).toContain('flotilla_links 0');
    expect(errorOf(await plane.call('GET', '/metrics', { headers: far }))).toBe('401 unauthorized');
    const token = await plane.call('GET', '/metrics', { headers: far, key: METRICS_TOKEN });
    expect(token.status).toBe(200);
  });

  test('are for no API key, not even an admin’s', async () => {
    for (const key of [plane.admin_key, scoped['all']]) {
      expect(errorOf(await plane.call('GET', '/metrics', { headers: far, key }))).toBe('401 unauthorized');
    }
  });
});

describe('enrolment', () => {
  const enrol = (token: string, name: string, key?: string) =>
    plane.call('POST', '/node/v1/enrol', { key, body: { token, name } });

  test('takes a token that works, once, and no other credential', async () => {
    const made = await plane.call('POST', '/api/v1/enrolment-tokens', { key: plane.admin_key });
    const { token } = made.json as unknown as { token: string };
    expect(errorOf(await enrol('fle_wrong', 'box'))).toBe('401 unauthorized token');
    expect(errorOf(await enrol(plane.admin_key, 'box', plane.admin_key))).toBe('401 unauthorized token');
    expect((await enrol(token, 'box')).status).toBe(201);
    expect(errorOf(await enrol(token, 'box-2'))).toBe('401 unauthorized token');
  });
});

describe('the node link', () => {
  /** Status of an upgrade; the socket is not kept. */
  function upgrade(path: string, credential?: string): Promise<{ status: number; body: string }> {
    const { promise, resolve, reject } = Promise.withResolvers<{ status: number; body: string }>();
    const { port } = plane.control;
    const request = httpRequest({
      port,
      host: '127.0.0.1',
      path,
      headers: {
        connection: 'Upgrade',
        upgrade: 'websocket',
        'sec-websocket-version': '13',
        'sec-websocket-key': Buffer.alloc(16).toString('base64'),
        ...(credential !== undefined && { authorization: `Bearer ${credential}` }),
      },
    });
    request.on('upgrade', (reply, socket) => {
      socket.destroy();
      resolve({ status: reply.statusCode!, body: '' });
    });
    request.on('response', (reply) => {
      let body = '';
      reply.setEncoding('utf8').on('data', (text: string) => (body += text));
      reply.on('end', () => resolve({ status: reply.statusCode!, body }));
    });
    request.on('error', reject).end();
    return promise;
  }

  test('opens for the credential of a node only', async () => {
    const made = await plane.call('POST', '/api/v1/enrolment-tokens', { key: plane.admin_key });
    const { token } = made.json as unknown as { token: string };
    const enrolled = await plane.call('POST', '/node/v1/enrol', { body: { token, name: 'linked' } });
    const { credential, id } = enrolled.json as unknown as { credential: string; id: string };
    for (const wrong of [undefined, `fln_${'w'.repeat(43)}`, plane.admin_key, token]) {
      const refused = await upgrade('/node/v1/link', wrong);
      expect([wrong, refused.status]).toEqual([wrong, 401]);
      expect(JSON.parse(refused.body)).toMatchObject({ error: { code: 'unauthorized' } });
    }
    expect((await upgrade('/node/v1/link', credential)).status).toBe(101);
    await plane.call('POST', `/api/v1/nodes/${id}/revoke`, { key: plane.admin_key });
    expect((await upgrade('/node/v1/link', credential)).status).toBe(403);
  });

  test('is the only path that can be upgraded', async () => {
    const refused = await upgrade('/v1/models', plane.admin_key);
    expect(refused.status).toBe(404);
    expect(JSON.parse(refused.body)).toMatchObject({ error: { code: 'not_found' } });
  });
});

describe('a route that needs the credential of a node', () => {
  const own = names.filter((name) => TABLE[name].needs === 'node');

  test('refuses who shows none, or another credential', async () => {
    expect(await statuses(own, () => undefined)).toEqual(every(own, '401 unauthorized'));
    const made = await plane.call('POST', '/api/v1/enrolment-tokens', { key: plane.admin_key });
    const { token } = made.json as unknown as { token: string };
    const others = [plane.admin_key, scoped['all'], token];
    const other = (row: Row) => others[own.findIndex((name) => TABLE[name] === row) % others.length];
    expect(await statuses(own, other)).toEqual(every(own, '401 unauthorized'));
  });

  test('serves a node, until its credential is withdrawn', async () => {
    const made = await plane.call('POST', '/api/v1/enrolment-tokens', { key: plane.admin_key });
    const { token } = made.json as unknown as { token: string };
    const enrolled = await plane.call('POST', '/node/v1/enrol', { body: { token, name: 'small' } });
    const { credential, id } = enrolled.json as unknown as { credential: string; id: string };
    expect(await statuses(own, () => credential)).toEqual(every(own, (row) => row.right));
    await plane.call('POST', `/api/v1/nodes/${id}/revoke`, { key: plane.admin_key });
    expect(await statuses(own, () => credential)).toEqual(every(own, '403 revoked'));
  });
});

// Last, because each refused credential makes the next one from this address wait longer.
describe('a credential that is not known', () => {
  test('is refused by every route that needs an API key', async () => {
    expect(await statuses(keyed, () => `flk_${'w'.repeat(43)}`)).toEqual(every(keyed, '401 unauthorized'));
  });
});
