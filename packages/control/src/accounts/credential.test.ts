import { expect, test } from 'vitest';
import { systemRandom } from '../clock.ts';
import { hashCredential, makeCredential } from './credential.ts';

test('a credential tells its kind and has 256 random bits', () => {
  expect(makeCredential('apiKey', systemRandom)).toMatch(/^flk_[\w-]{43}$/);
  expect(makeCredential('enrolmentToken', systemRandom)).toMatch(/^fle_[\w-]{43}$/);
  expect(makeCredential('node', systemRandom)).toMatch(/^fln_[\w-]{43}$/);
  expect(makeCredential('node', systemRandom)).not.toBe(makeCredential('node', systemRandom));
});

test('what is kept of it is SHA-256', () => {
  expect(hashCredential('abc')).toBe('ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad');
});
