import { expect, test } from 'vitest';
import { changeOf } from './audit.ts';

test('what was asked for is told without secrets, wherever they are', () => {
  const body = {
    name: 'openai',
    api_key: 'sk-1',
    headers: { authorization: 'Bearer x' },
    requests_per_minute: 5,
    max_tokens: 9,
    nested: [{ password: 'p', keys: ['k'], url: 'https://x.example' }],
    token: null,
  };
  expect(changeOf(body)).toEqual({
    name: 'openai',
    api_key: '[hidden]',
    headers: '[hidden]',
    requests_per_minute: 5,
    max_tokens: 9,
    nested: [{ password: '[hidden]', keys: '[hidden]', url: 'https://x.example' }],
    token: null,
  });
});

test('a secret is known by its looks, too', () => {
  const key = `flk_${'x'.repeat(40)}`;
  expect(
    changeOf({ name: `was ${key}`, base_url: 'https://me:pass@api.example/v1', labels: { at: key } }),
  ).toEqual({
    name: 'was [hidden]',
    base_url: 'https://[hidden]@api.example/v1',
    labels: { at: '[hidden]' },
  });
});

test('a body too long for a row is told by its fields; what is no object is nothing', () => {
  const models = Array.from({ length: 1000 }, (_, n) => `model-with-a-long-name-${n}`);
  expect(changeOf({ name: 'x', allowed_models: models })).toEqual({
    fields: ['name', 'allowed_models'],
    too_long: true,
  });
  expect([changeOf(undefined), changeOf([1])]).toEqual([{}, {}]);
});
