import { expect, test } from 'vitest';
import { openLog } from './log.ts';

function lines(level: Parameters<typeof openLog>[0] = 'debug') {
  const written: string[] = [];
  return { written, log: openLog(level, { write: (line) => void written.push(line) }) };
}

test('one JSON object a line, with level, time and message', () => {
  const { log, written } = lines();
  log.warn({ node: 'node_1' }, 'It is silent.');
  expect(JSON.parse(written[0]!)).toEqual({
    level: 'warn',
    time: expect.stringMatching(/^\d{4}-.*Z$/),
    node: 'node_1',
    msg: 'It is silent.',
  });
});

test('a level hides what is below it', () => {
  const { log, written } = lines('warn');
  log.info({}, 'no');
  log.error({}, 'yes');
  expect(written).toHaveLength(1);
  const silent = lines('silent');
  silent.log.error({}, 'no');
  expect(silent.written).toEqual([]);
});

test('credentials and bodies do not get out, wherever a mistake puts them', () => {
  const { log, written } = lines();
  const secret = 'flk_secret';
  for (const field of [
    'authorization',
    'x-api-key',
    'headers',
    'credential',
    'token',
    'database_url',
    'body',
  ]) {
    log.info({ [field]: secret, request: { [field]: secret } }, 'x');
  }
  expect(written.join('')).not.toContain(secret);
});

test('an error is its message, code, stack and causes, never what a driver hung on it', () => {
  const { log, written } = lines();
  const cause = Object.assign(new Error('refused'), { code: 'ECONNREFUSED', parameters: ['prompt'] });
  log.error({ error: new Error('outer', { cause }) }, 'x');
  const { error } = JSON.parse(written[0]!) as { error: Record<string, unknown> };
  expect(error).toMatchObject({ message: 'outer', cause: { message: 'refused', code: 'ECONNREFUSED' } });
  expect(written[0]).not.toContain('prompt');
});
