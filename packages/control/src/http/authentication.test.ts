import { describe, expect, test } from 'vitest';
import { credentialOf, isDirectLoopback } from './authentication.ts';

describe('a credential', () => {
  test.each([
    [{ authorization: 'Bearer flk_1' }, 'flk_1'],
    [{ authorization: 'bearer  flk_1 ' }, 'flk_1'],
    [{ 'x-api-key': 'flk_1' }, 'flk_1'],
    [{ authorization: 'Basic abc', 'x-api-key': 'flk_1' }, 'flk_1'],
    [{ authorization: 'Bearer flk_1', 'x-api-key': 'flk_2' }, 'flk_1'],
    [{ authorization: 'Bearer' }, undefined],
    [{ authorization: 'Bearer a b' }, undefined],
    [{ 'x-api-key': '' }, undefined],
    [{}, undefined],
  ])('in %j is %s', (headers, credential) => {
    expect(credentialOf({ headers })).toBe(credential);
  });
});

describe('direct loopback', () => {
  const from = (remoteAddress: string, headers: Record<string, string> = {}) =>
    isDirectLoopback({ headers: { host: 'localhost:7400', ...headers }, socket: { remoteAddress } } as never);

  test('is this machine, by any of its names', () => {
    expect(['127.0.0.1', '127.9.9.9', '::1', '::ffff:127.0.0.1'].map((address) => from(address))).toEqual([
      true,
      true,
      true,
      true,
    ]);
    expect(from('::1', { host: '[::1]:7400' })).toBe(true);
    expect(from('127.0.0.1', { host: '127.0.0.1' })).toBe(true);
  });

  test('is no other machine, nobody behind a proxy, and no web page under a name of its own', () => {
    expect(
      ['10.0.0.1', '192.168.1.1', '2001:db8::1', '::ffff:10.0.0.1', ''].map((address) => from(address)),
    ).toEqual([false, false, false, false, false]);
    for (const header of ['x-forwarded-for', 'x-real-ip', 'forwarded', 'via']) {
      expect([header, from('127.0.0.1', { [header]: '127.0.0.1' })]).toEqual([header, false]);
    }
    expect(from('127.0.0.1', { host: 'rebound.example:7400' })).toBe(false);
  });
});
