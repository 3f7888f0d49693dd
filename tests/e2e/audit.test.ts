import { type AuditView, ROUTES, type Route } from '@flotilla/protocol';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { flotilla } from '../support/program.ts';
import { openPlane, type TestPlane } from '../support/plane.ts';

/** Who did what: over the real surface, with the rows that are left. */
let plane: TestPlane;
beforeAll(async () => {
  plane = await openPlane({ FLOTILLA_TRUSTED_PROXIES: '127.0.0.1' });
});
afterAll(() => plane.close());

const FROM = { 'x-forwarded-for': '203.0.113.7' };
const send = (method: string, path: string, body?: unknown, headers = {}) =>
  plane.call(method, path, {
    key: plane.admin_key,
    headers: { ...FROM, ...headers },
    ...(body !== undefined && { body }),
  });
const rows = async (query = '') => {
  const reply = await send('GET', `/api/v1/audit?limit=500${query}`);
  return (reply.json as unknown as { data: AuditView[] }).data;
};

describe('the route table', () => {
  test('names the act of every route that changes something for an admin', () => {
    const silent = Object.entries(ROUTES as Record<string, Route>).filter(
      ([, route]) => route.needs === 'admin' && route.method !== 'GET' && route.audit === undefined,
    );
    expect(silent.map(([name]) => name)).toEqual([]);
  });
});

describe('an act of administration', () => {
  test('is there with who, from where, what, on what, and under which request', async () => {
    const made = await send(
      'POST',
      '/api/v1/keys',
      { name: 'laptop', scopes: ['jobs'] },
      { 'x-request-id': 'asked-1' },
    );
    const { id, key } = made.json as unknown as { id: string; key: string };
    const admin = (await send('GET', '/api/v1/whoami')).json as unknown as { id: string; name: string };
    const [row] = await rows(`&target=${id}`);
    expect(row).toMatchObject({
      action: 'key.create',
      outcome: 'succeeded',
      key: admin.id,
      key_name: admin.name,
      address: '203.0.113.7',
      target: id,
      change: { name: 'laptop', scopes: ['jobs'] },
      request_id: 'asked-1',
    });
    expect(Math.abs(Date.parse(row!.at) - Date.now())).toBeLessThan(60_000);
    await send('PATCH', `/api/v1/keys/${id}`, { name: 'desktop' });
    await send('DELETE', `/api/v1/keys/${id}`);
    const acts = await rows(`&target=${id}`);
    expect(acts.map(({ action }) => action)).toEqual(['key.revoke', 'key.update', 'key.create']);
    expect(JSON.stringify(await rows())).not.toContain(key);
  });

  test('that was refused is there with the refusal; a request that could not be read was none', async () => {
    await send('POST', '/api/v1/nodes/node_00000000000000000000000000/drain');
    await send('POST', '/api/v1/keys', { nmae: 'x' });
    const [row] = await rows();
    expect(row).toMatchObject({
      action: 'node.drain',
      outcome: 'not_found',
      target: 'node_00000000000000000000000000',
    });
  });

  test('is not what other keys do, and not theirs to read', async () => {
    const before = (await rows()).length;
    const { key } = (await send('POST', '/api/v1/keys', { name: 'jobs', scopes: ['jobs'] }))
      .json as unknown as {
      key: string;
    };
    expect(
      (await plane.call('POST', '/api/v1/jobs/job_00000000000000000000000000/cancel', { key })).status,
    ).toBe(404);
    expect((await plane.call('GET', '/api/v1/audit', { key })).status).toBe(403);
    expect(await rows()).toHaveLength(before + 1);
  });

  test('holds no secret of an enrolment, and a stranger’s try leaves nothing', async () => {
    const { token, id } = (await send('POST', '/api/v1/enrolment-tokens', {})).json as unknown as {
      token: string;
      id: string;
    };
    const enrol = (body: object) => plane.call('POST', '/node/v1/enrol', { body, headers: FROM });
    expect((await enrol({ token: 'fle_wrong', name: 'thief' })).status).toBe(401);
    const { id: node } = (await enrol({ token, name: 'attic' })).json as unknown as { id: string };
    const enrolments = await rows('&action=node.enrol');
    expect(enrolments).toMatchObject([
      { key: null, address: '203.0.113.7', target: node, change: { token: id, name: 'attic' } },
    ]);
    const all = JSON.stringify(await rows());
    expect(all).not.toContain(token);
    expect(all).not.toContain('fln_');
  });

  test('is shown by `flotilla audit`', async () => {
    const { url } = plane.control;
    const env = { FLOTILLA_URL: url, FLOTILLA_API_KEY: plane.admin_key };
    const { code, stdout } = await flotilla(['audit', '--action', 'node.enrol'], env).ended;
    expect(code).toBe(0);
    expect(stdout).toMatch(/WHEN +WHO +ACT +TARGET/);
    expect(stdout).toMatch(/a token +node\.enrol +node_/);
    const json = await flotilla(['audit', '--json', '--limit', '2'], env).ended;
    expect(JSON.parse(json.stdout)).toHaveLength(2);
  });
});
