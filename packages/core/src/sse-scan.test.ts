import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { SSE_HOLD_MAX_BYTES, SseScan } from './sse-scan.ts';

const USAGE = { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 };
const chunkOf = (delta: string, finish: string | null = null) =>
  `data: ${JSON.stringify({ id: 'c', choices: [{ index: 0, delta: { content: delta }, finish_reason: finish }] })}`;
const usageOnly = `data: ${JSON.stringify({ id: 'c', choices: [], usage: USAGE })}`;

function bytesOf(parts: Uint8Array[]): string {
  return Buffer.concat(parts).toString('latin1');
}

/** Feeds `input` cut at the given places. */
function feed(scan: SseScan, input: Buffer, cuts: number[]): { out: string; most_waiting: number } {
  const places = [...new Set(cuts.map((cut) => cut % (input.length + 1)))].sort((a, b) => a - b);
  const out: Uint8Array[] = [];
  let from = 0;
  let sent = 0;
  let most_waiting = 0;
  for (const place of [...places, input.length]) {
    // A copy that is wiped afterwards: nothing that waits may be a view of the caller's buffer.
    const chunk = Buffer.from(input.subarray(from, place));
    const pieces = scan.push(chunk).map((piece) => Buffer.from(piece));
    chunk.fill(0x7a);
    for (const piece of pieces) sent += piece.length;
    out.push(...pieces);
    from = place;
    most_waiting = Math.max(most_waiting, scan.held_bytes);
  }
  expect(sent + scan.held_bytes).toBeLessThanOrEqual(input.length);
  out.push(...scan.finish());
  return { out: bytesOf(out), most_waiting };
}

const lineEnd = fc.constantFrom('\n', '\r\n', '\r');
const ordinary: fc.Arbitrary<string[]> = fc.oneof(
  fc.string({ unit: 'grapheme', maxLength: 40 }).map((text) => [chunkOf(text)]),
  fc.constantFrom('stop', null).map((finish) => [chunkOf('end "usage" 😀', finish)]),
  fc.constant<string[]>([': keep-alive']),
  fc.constant<string[]>(['event: ping', 'data: {"a":', 'data: 1}']),
  fc.constant<string[]>(['id: 7', chunkOf('data: [DONE] in a text')]),
  fc.constant<string[]>(['data: {"choices":[{"delta":{}}],"usage":null}']),
  fc.constant<string[]>(['data']),
);
const stream = fc.record({
  end: lineEnd,
  before: fc.array(ordinary, { maxLength: 8 }),
  with_usage: fc.boolean(),
  with_done: fc.boolean(),
  after: fc.array(ordinary, { maxLength: 2 }),
});
const cutsOf = fc.array(fc.nat(4000), { maxLength: 40 });
const join = (events: string[][], end: string) =>
  events.map((lines) => lines.map((line) => line + end).join('') + end).join('');

describe('SseScan', () => {
  test('passes every byte of any stream on at once, however it is cut', () => {
    fc.assert(
      fc.property(stream, cutsOf, ({ end, before, with_usage, with_done, after }, cuts) => {
        const events = [
          ...before,
          ...(with_usage ? [[usageOnly]] : []),
          ...(with_done ? [['data: [DONE]']] : []),
        ];
        const input = Buffer.from(join([...events, ...after], end));
        const scan = new SseScan();
        const { out, most_waiting } = feed(scan, input, cuts);
        expect(out).toBe(input.toString('latin1'));
        expect(most_waiting).toBe(0);
        expect(scan.bytes).toBe(input.length);
        expect(scan.usage?.completion_tokens).toBe(with_usage ? 2 : undefined);
        expect(scan.done_offset).toBe(
          with_done ? Buffer.byteLength(join(events.slice(0, -1), end)) : undefined,
        );
        expect(scan.finished).toBe(
          [...before, ...after].some((lines) => lines[0]!.includes('"finish_reason":"')),
        );
        expect(scan.data_events).toBe(
          [...before, ...after].filter((lines) => lines.some((line) => line.startsWith('data:'))).length +
            (with_usage ? 1 : 0),
        );
        expect(scan.error).toBeUndefined();
      }),
      { numRuns: 500 },
    );
  });

  test('drops the usage-only event whole and nothing else, holding 8 KiB at most', () => {
    fc.assert(
      fc.property(
        stream,
        cutsOf,
        fc.boolean(),
        ({ end, before, with_usage, with_done, after }, cuts, hold_done) => {
          const rest = [...(with_done ? [['data: [DONE]']] : []), ...after];
          const input = Buffer.from(join([...before, ...(with_usage ? [[usageOnly]] : []), ...rest], end));
          const scan = new SseScan({ drop_usage_event: true, hold_done });
          const { out, most_waiting } = feed(scan, input, cuts);
          const all = out + bytesOf(scan.release());
          expect(all).toBe(Buffer.from(join([...before, ...rest], end)).toString('latin1'));
          const first = hold_done && with_done ? join(before, end) : join([...before, ...rest], end);
          expect(out).toBe(Buffer.from(first).toString('latin1'));
          expect(most_waiting).toBeLessThanOrEqual(SSE_HOLD_MAX_BYTES);
          expect(scan.usage?.prompt_tokens).toBe(with_usage ? 3 : undefined);
        },
      ),
      { numRuns: 500 },
    );
  });

  test('drops a usage-only event that ends with the stream instead of an empty line', () => {
    const scan = new SseScan({ drop_usage_event: true });
    expect(feed(scan, Buffer.from(`${chunkOf('a')}\n\n${usageOnly}`), [5, 150]).out).toBe(
      `${chunkOf('a')}\n\n`,
    );
    expect(scan.usage?.completion_tokens).toBe(2);
  });

  test('reads and passes an event of a megabyte, but never holds more than 8 KiB of it', () => {
    const large = `data: ${JSON.stringify({ choices: [{ delta: { content: 'ä'.repeat(500_000) }, finish_reason: 'stop' }], usage: USAGE })}\n\n`;
    const scan = new SseScan({ drop_usage_event: true });
    const input = Buffer.from(`${large}${usageOnly}\n\ndata: [DONE]\n\n`);
    const { out, most_waiting } = feed(
      scan,
      input,
      Array.from({ length: 300 }, (_, index) => index * 3777),
    );
    expect(out).toBe(Buffer.from(`${large}data: [DONE]\n\n`).toString('latin1'));
    expect(most_waiting).toBeLessThanOrEqual(SSE_HOLD_MAX_BYTES);
    expect(scan.finished).toBe(true);
    expect(scan.content_bytes).toBe(1_000_000);
  });

  test('passes an event too long to be read, and finds what follows it', () => {
    const scan = new SseScan();
    const input = Buffer.from(`data: "${'x'.repeat(3_000_000)}"\n\n${usageOnly}\n\ndata: [DONE]\n\n`);
    const cuts = Array.from({ length: 50 }, (_, index) => index * 65_536);
    expect(feed(scan, input, cuts).out.length).toBe(input.length);
    expect(scan.usage?.prompt_tokens).toBe(3);
    expect(scan.done).toBe(true);
  });

  test.each([
    ['data: {"error":{"message":"out of memory","code":500}}\n\n', 'out of memory'],
    ['data: {"error": "busy"}\n\n', 'busy'],
    ['data: {"object":"error","message":"bad"}\n\n', 'bad'],
    ['event: error\ndata: {"message":"broken"}\n\n', 'broken'],
    ['error: {"code":500,"message":"llama"}\n\n', 'llama'],
    ['event: error\ndata: not json\n\n', 'The backend reported an error in its stream.'],
    [`${chunkOf('he said "error": {')}\n\n`, undefined],
    [`${chunkOf('error')}\n\n`, undefined],
    ['data: {"choices":[],"error":null}\n\n', undefined],
  ])('finds an in-band error in %j', (text, error) => {
    const scan = new SseScan();
    scan.push(Buffer.from(text));
    expect(scan.error).toBe(error);
  });

  test('counts text, reasoning and tool arguments as content', () => {
    const scan = new SseScan();
    scan.push(
      Buffer.from('data: {"choices":[{"delta":{"content": "a\\"b","reasoning_content":"xyz"}}]}\n\n'),
    );
    scan.push(Buffer.from('data: {"choices":[{"text":"hello"}]}\n\n'));
    scan.push(
      Buffer.from('data: {"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{}"}}]}}]}\n\n'),
    );
    expect(scan.content_bytes).toBe(4 + 3 + 5 + 2);
  });

  test('a byte order mark before the first line hides neither usage nor [DONE]', () => {
    for (const cuts of [[], [1], [2, 3], [4]]) {
      const scan = new SseScan();
      feed(scan, Buffer.from('\uFEFFdata: [DONE]\n\n'), cuts);
      expect(scan.done_offset).toBe(0);
      const other = new SseScan();
      feed(other, Buffer.from(`\uFEFF${usageOnly}\n\n`), cuts);
      expect(other.usage?.prompt_tokens).toBe(3);
    }
  });
});

describe('a scan that holds back the end', () => {
  test('hands on everything before [DONE] and nothing from it on, however the stream is cut', () => {
    const spelled = fc.constantFrom('data: [DONE]', 'data:[DONE]', 'data:  [DONE]', 'data: [DONE] ');
    fc.assert(
      fc.property(stream, cutsOf, spelled, ({ end, before, with_done, after }, cuts, done) => {
        const head = Buffer.from(join(before, end));
        const tail = Buffer.from(with_done ? join([[done], ...after], end) : '');
        const hold = new SseScan({ hold_done: true });
        const { out, most_waiting } = feed(hold, Buffer.concat([head, tail]), cuts);
        expect(out).toBe(head.toString('latin1'));
        expect(hold.done).toBe(with_done);
        expect(bytesOf(hold.release())).toBe(tail.toString('latin1'));
        expect(with_done ? 0 : most_waiting).toBeLessThan(32);
      }),
      { numRuns: 500 },
    );
  });

  test('holds back a last line that may still become [DONE], and lets it go when it does not', () => {
    const hold = new SseScan({ hold_done: true });
    expect(bytesOf(hold.push(Buffer.from('data: {}\n\ndata: [DO')))).toBe('data: {}\n\n');
    expect(bytesOf(hold.push(Buffer.from('NT]\n\n')))).toBe('data: [DONT]\n\n');
    expect(bytesOf(hold.push(Buffer.from('data: [DON')))).toBe('');
    expect(bytesOf(hold.finish())).toBe('data: [DON');
  });

  test('holds the whole event when other lines of it came in the same piece', () => {
    const hold = new SseScan({ hold_done: true });
    expect(bytesOf(hold.push(Buffer.from('data: 1\n\nevent: end\ndata: [DONE]\n\n')))).toBe('data: 1\n\n');
    expect(bytesOf(hold.release())).toBe('event: end\ndata: [DONE]\n\n');
  });

  test('keeps a bounded amount of what a backend sends after [DONE]', () => {
    const hold = new SseScan({ hold_done: true });
    hold.push(Buffer.from('data: [DONE]\n\n'));
    for (let count = 0; count < 100; count++) hold.push(Buffer.alloc(16 * 1024));
    expect(hold.held_bytes).toBeLessThanOrEqual(64 * 1024);
  });
});
