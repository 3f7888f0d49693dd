import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openPlane, type TestPlane } from '../support/plane.ts';

/** What a page of another origin may do from a browser: nothing, until the operator names its origin. */
const APP = 'https://app.example';
const OTHER = 'https://other.example';
const preflight = (origin: string) => ({
  origin,
  'access-control-request-method': 'POST',
  'access-control-request-headers': 'authorization,content-type,x-stainless-lang',
});
const corsHeaders = (headers: Headers) =>
  [...headers.keys()].filter((name) => name.startsWith('access-control'));

describe('with one origin named', () => {
  let plane: TestPlane;
  beforeAll(async () => {
    plane = await openPlane({ FLOTILLA_CORS_ORIGINS: APP });
  });
  afterAll(() => plane.close());

  test('its preflight is answered without a key, with what an OpenAI client sends', async () => {
    const reply = await plane.call('OPTIONS', '/v1/chat/completions', { headers: preflight(APP) });
    expect(reply.status).toBe(204);
    expect(Object.fromEntries(reply.headers)).toMatchObject({
      'access-control-allow-origin': APP,
      'access-control-allow-headers': 'authorization,content-type,x-stainless-lang',
      'access-control-allow-methods': expect.stringContaining('POST'),
      vary: 'origin',
    });
    expect(reply.headers.has('access-control-allow-credentials')).toBe(false);
  });

  test('an answer and a refusal can both be read by the page, with their headers', async () => {
    for (const key of [plane.admin_key, undefined]) {
      const reply = await plane.call('GET', '/v1/models', { key, headers: { origin: APP } });
      expect(reply.status).toBe(key === undefined ? 401 : 200);
      expect(reply.headers.get('access-control-allow-origin')).toBe(APP);
      const exposed = reply.headers.get('access-control-expose-headers')?.split(', ');
      expect(exposed).toEqual(
        expect.arrayContaining([
          'x-request-id',
          'x-flotilla-queue-ms',
          'x-ratelimit-limit-tokens',
          'retry-after',
        ]),
      );
    }
  });

  test('another origin gets nothing, and no cache mistakes one for the other', async () => {
    const asked = await plane.call('OPTIONS', '/v1/chat/completions', { headers: preflight(OTHER) });
    expect(asked.status).toBe(405);
    expect(corsHeaders(asked.headers)).toEqual([]);
    const reply = await plane.call('GET', '/v1/models', { key: plane.admin_key, headers: { origin: OTHER } });
    expect(corsHeaders(reply.headers)).toEqual([]);
    expect(reply.headers.get('vary')).toBe('origin');
  });
});

describe('without any named', () => {
  let plane: TestPlane;
  beforeAll(async () => {
    plane = await openPlane();
  });
  afterAll(() => plane.close());

  test('no page of another origin gets anything', async () => {
    const asked = await plane.call('OPTIONS', '/v1/models', { headers: preflight(APP) });
    expect([asked.status, corsHeaders(asked.headers)]).toEqual([405, []]);
    const reply = await plane.call('GET', '/v1/models', { key: plane.admin_key, headers: { origin: APP } });
    expect([reply.status, corsHeaders(reply.headers)]).toEqual([200, []]);
  });
});

describe('with every origin allowed', () => {
  let plane: TestPlane;
  beforeAll(async () => {
    plane = await openPlane({ FLOTILLA_CORS_ORIGINS: '*', FLOTILLA_TRUSTED_PROXIES: '127.0.0.1' });
  });
  afterAll(() => plane.close());

  test('each gets a *, and never a cookie’s worth of trust', async () => {
    const reply = await plane.call('GET', '/v1/models', { key: plane.admin_key, headers: { origin: OTHER } });
    expect(reply.headers.get('access-control-allow-origin')).toBe('*');
    expect(reply.headers.has('access-control-allow-credentials')).toBe(false);
  });

  test('behind a trusted proxy, wrong keys slow down the client that sends them, not its neighbours', async () => {
    const wrong = (from: string) =>
      plane.call('GET', '/v1/models', { key: 'flk_wrong', headers: { 'x-forwarded-for': from } });
    for (let sent = 0; sent < 4; sent++) await wrong('203.0.113.1');
    const order: string[] = [];
    const slow = wrong('203.0.113.1').then(() => order.push('offender'));
    const quick = wrong('203.0.113.2').then(() => order.push('neighbour'));
    await Promise.all([slow, quick]);
    expect(order).toEqual(['neighbour', 'offender']);
  });

  test('what a proxy passed on is not from this machine, whatever it says: no metrics without the token', async () => {
    const reply = await plane.call('GET', '/metrics', { headers: { 'x-forwarded-for': '127.0.0.1' } });
    expect(reply.status).toBe(401);
  });
});
