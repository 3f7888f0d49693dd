import { once } from 'node:events';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { median, quantile, Samples, spreadOf } from '../bench/histogram.ts';
import { ask, dial, generate } from '../bench/load.ts';
import { bars } from '../bench/plot.ts';
import { goalOf } from '../bench/report.ts';
import { interleave, middle, ratio } from '../bench/rounds.ts';

/** What figures rest on: the bench's own reading, counting and comparing. */
describe('the load generator', () => {
  let pieces: Buffer[] = [];
  let url: string;
  const server = createServer((socket) => {
    socket.setNoDelay(true);
    socket.on('error', () => undefined);
    socket.on('data', () => void answer(socket));
  });
  beforeAll(async () => {
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
  });
  afterAll(() => void server.close());

  async function answer(socket: Socket): Promise<void> {
    for (const piece of pieces) await new Promise((sent) => socket.write(piece, sent));
  }

  async function read(text: string, cuts: number[]): Promise<boolean> {
    const whole = Buffer.from(text, 'latin1');
    const ends = [...new Set(cuts.map((cut) => cut % whole.length))].sort((a, b) => a - b);
    pieces = [...ends, whole.length].map((end, at) => whole.subarray(ends[at - 1] ?? 0, end));
    const socket = await dial(url);
    try {
      const { keep_alive } = await ask(socket, Buffer.from('x'), {
        status: 200,
        expects: Buffer.from('[DONE]'),
      });
      return keep_alive;
    } finally {
      socket.destroy();
    }
  }

  const HEAD = 'HTTP/1.1 200 OK\r\n';
  const chunked = (...chunks: string[]) =>
    `${HEAD}Transfer-Encoding: chunked\r\n\r\n${[...chunks, ''].map((chunk) => `${chunk.length.toString(16)}\r\n${chunk}\r\n`).join('')}`;
  const counted = (body: string) => `${HEAD}Content-Length: ${body.length}\r\n\r\n${body}`;

  test('reads a whole answer, wherever its bytes are cut', async () => {
    const answers = [chunked('data: one\n\n', 'data: [DO', 'NE]\n\n'), counted('{"text":"[DONE]"}')];
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...answers),
        fc.array(fc.nat(), { maxLength: 6 }),
        async (text, cuts) => {
          expect(await read(text, cuts)).toBe(true);
        },
      ),
      { numRuns: 60 },
    );
  });

  test('takes no answer for one that is not what was expected', async () => {
    await expect(read(chunked('data: one\n\n'), [])).rejects.toThrow('without what was expected');
    await expect(read(counted('[DONE]').replace('200', '503'), [])).rejects.toThrow('503');
    await expect(read(`${HEAD}\r\n`, [])).rejects.toThrow('without a length');
  });

  test('sends no more than it is told to, and counts what fails', async () => {
    pieces = [Buffer.from(counted('[DONE]'))];
    const load = { url, headers: {}, body: Buffer.from('x'), connections: 3, for_ms: 60_000, most: 20 };
    expect(await generate({ ...load, expects: '[DONE]' })).toMatchObject({ requests: 20, failed: 0 });
    expect(await generate({ ...load, expects: 'nothing' })).toMatchObject({ requests: 0, failed: 20 });
  });
});

describe('figures', () => {
  test('a quantile is the value that so many are not above', () => {
    const values = Float64Array.from({ length: 100 }, (_, at) => at + 1);
    expect([0.5, 0.9, 0.99, 1].map((share) => quantile(values, share))).toEqual([50, 90, 99, 100]);
    const samples = new Samples();
    for (let at = 5000; at > 0; at--) samples.add(at);
    expect(spreadOf(samples.values())).toEqual({ count: 5000, p50: 2500, p90: 4500, p99: 4950, most: 5000 });
  });

  test('a median of two rounds favours neither', () => {
    expect([[24.8, 12.1], [4, 1, 3, 2], [9, 1, 2], [5]].map(median)).toEqual([18.45, 2.5, 2, 5]);
    expect(median([])).toBeNaN();
  });

  test('targets take turns, each once a round, and pairs are of one round', async () => {
    const order: string[] = [];
    const found = await interleave(['a', 'b', 'c'], 3, async (target, round) => {
      order.push(target);
      return round;
    });
    expect(order.join('')).toBe('abcacbcab');
    expect(found.get('b')).toEqual([0, 1, 2]);
    expect(ratio([10, 40, 90], [10, 20, 30])).toEqual({ median: 2, low: 1, high: 3 });
  });

  test('a goal is reached by the median, and never by what was not measured', () => {
    expect(goalOf('x', { most: 3 }, 'ms', middle([1, 2, 9])).reached).toBe(true);
    expect(goalOf('x', { most: 1.5 }, 'ms', middle([1, 2, 9])).reached).toBe(false);
    expect(goalOf('x', { least: 3 }, 'ms', middle([1, 2, 9])).reached).toBe(false);
    expect(goalOf('x', { most: 3 }, 'ms', { missing: 'left out' }).reached).toBeNull();
    expect(goalOf('x', { most: 3 }, 'ms', Number.NaN).reached).toBe(false);
  });

  test('a plot keeps the digits of small values, and large ones of another group or missing ones hide no bar', () => {
    const group = (...values: number[]) => ({
      label: 'x',
      bars: values.map((value) => ({ name: String(value), value })),
    });
    const svg = bars({ title: 'x', unit: 'ms', groups: [group(0.0123, 0.00615, Number.NaN), group(1e6)] });
    const widths = [...svg.matchAll(/ width="([^"]+)" height="16"/g)].map(([, width]) => Number(width));
    expect(widths).toEqual([600, 300, 0, 600]);
    for (const said of ['>0.0123 ms<', '>0.00615 ms<', '>– ms<', '>1,000,000 ms<'])
      expect(svg).toContain(said);
  });
});
