import { ROUTES } from '@flotilla/protocol';
import fastify from 'fastify';
import { describe, expect, test } from 'vitest';
import { z } from 'zod';
import { HttpError } from './errors.ts';
import { invalid, nothingHere, read, refuseForeignRoutes } from './routing.ts';

describe('a route', () => {
  const app = fastify();
  refuseForeignRoutes(app);

  test('that the table does not have cannot be registered', () => {
    const handler = () => '';
    expect(() => app.get('/backdoor', handler)).toThrow(/not in the route table/);
    expect(() => app.get('/backdoor', { config: { name: 'healthz' } }, handler)).toThrow(
      /not in the route table/,
    );
    expect(() => app.post('/healthz', { config: { name: 'healthz' } }, handler)).toThrow(
      /not in the route table/,
    );
  });

  test('that it has can, and is found with HEAD too', () => {
    app.get(ROUTES.healthz.path, { config: { name: 'healthz' } }, () => '');
    expect(app.hasRoute({ method: 'HEAD', url: ROUTES.healthz.path })).toBe(true);
  });
});

describe('where nothing is', () => {
  test.each([
    ['PUT', '/v1/models', 'GET, HEAD'],
    ['GET', '/v1/chat/completions?x=1', 'POST'],
    ['PUT', '/api/v1/keys/key_1', 'DELETE, GET, HEAD, PATCH'],
    ['POST', '/v1/models/org/model', 'GET, HEAD'],
  ])('%s %s: another method is, which Allow names', (method, url, allow) => {
    const error = nothingHere(method, url) as HttpError;
    expect(error).toBeInstanceOf(HttpError);
    expect([error.status, error.headers['allow']]).toEqual([405, allow]);
  });

  test('an unknown path of /v1 is told what exists', () => {
    const error = nothingHere('POST', '/v1/responses');
    expect(error.status).toBe(404);
    expect(error.message).toMatch(
      /\/v1\/responses.*POST \/v1\/chat\/completions.*GET \/v1\/models\/\{model\}|GET \/v1\/models/,
    );
  });

  test('an unknown path is not repeated without end', () => {
    expect(nothingHere('GET', `/${'x'.repeat(5000)}`).message.length).toBeLessThan(300);
  });
});

describe('what is not valid', () => {
  const schema = z.strictObject({
    name: z.string().max(3),
    list: z.array(z.object({ n: z.number() })).optional(),
  });
  const problem = (value: unknown) => invalid(schema.safeParse(value).error!, value, 'body');

  test.each([
    [{}, 'name', "'name' is missing."],
    [{ name: 'long' }, 'name', /^'name' is not valid: /],
    [{ name: 'a', nmae: 1 }, 'nmae', "'nmae' is not a field of this request."],
    [{ name: 'a', list: [{ n: 1 }, { n: 'x' }] }, 'list.1.n', /^'list.1.n' is not valid: expected number/],
  ])('%j: param %s', (value, param, message) => {
    expect(problem(value).details.param).toBe(param);
    expect(problem(value).message).toMatch(message);
  });

  test('a body that is no object names no param', () => {
    expect(problem([]).details.param).toBeUndefined();
    expect(problem([]).message).toMatch(/^The body is not valid: expected object/);
  });
});

test('text that no store takes is refused, in names as in values', () => {
  const schema = z.object({ metadata: z.record(z.string(), z.unknown()) });
  for (const metadata of [{ a: '\0' }, { a: ['\ud800'] }, { '\0': 1 }, { a: { '\ud800': 1 } }]) {
    expect(() => read(schema, { metadata }, 'body')).toThrow(/'metadata.*cannot be stored/);
  }
  expect(read(schema, { metadata: { ä: 'ö' } }, 'body')).toEqual({ metadata: { ä: 'ö' } });
});
