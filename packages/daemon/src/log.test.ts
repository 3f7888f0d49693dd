import { expect, test } from 'vitest';
import { openLog } from './log.ts';

function collect(isTTY: boolean) {
  const lines: string[] = [];
  return { lines, output: { isTTY, write: (line: string) => void lines.push(line) } };
}

test('for programs it writes JSON lines, for a person short ones', () => {
  const program = collect(false);
  openLog('info', program.output).warn({ backend: 'gpu' }, 'The backend is down.');
  expect(JSON.parse(program.lines[0]!)).toMatchObject({
    level: 'warn',
    backend: 'gpu',
    msg: 'The backend is down.',
  });
  const person = collect(true);
  openLog('info', person.output).warn({ backend: 'gpu', models: 2 }, 'The backend is down.');
  expect(person.lines[0]).toMatch(
    /^\d\d:\d\d:\d\d warn: The backend is down\. {2}\(backend=gpu models=2\)\n$/,
  );
});

test('the level is kept', () => {
  const { lines, output } = collect(false);
  const log = openLog('error', output);
  log.info({}, 'unheard');
  log.error({}, 'heard');
  expect(lines).toHaveLength(1);
});

test('a secret that slipped into a field is hidden, one level down too', () => {
  const { lines, output } = collect(false);
  openLog('info', output).info(
    { credential: 'fln_1', target: { headers: { authorization: 'Bearer sk-1' }, api_key: 'sk-2' } },
    'x',
  );
  expect(lines[0]).not.toMatch(/fln_1|sk-/);
});
