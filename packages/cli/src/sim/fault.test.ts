import { once } from 'node:events';
import { connect } from 'node:net';
import { setTimeout as wait } from 'node:timers/promises';
import OpenAI from 'openai';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { SimBackend } from './backend.ts';
import { FAULT_NAMES, type FaultName, parseFault, type PlannedFault } from './fault.ts';

let backend: SimBackend;
afterEach(() => backend.close());

async function start(fault: string): Promise<void> {
  backend = new SimBackend({ faults: [parseFault(fault) as PlannedFault] });
  await backend.listen();
}

/** What a client that reads bytes sees of one request. */
interface Seen {
  status: number | null;
  text: string;
  /** `whole`: HTTP says that the answer is complete; `open`: nothing more came, the connection stands. */
  ending: 'whole' | 'broken' | 'open';
  headers: Headers | null;
}

/** Faults that are silence, or have no end. */
const OPEN: readonly string[] = ['stall-first-byte', 'stall-mid-stream', 'endless', 'trickle'];

async function ask(stream: boolean, fault = ''): Promise<Seen> {
  const leave = new AbortController();
  const seen: Seen = { status: null, text: '', ending: 'open', headers: null };
  const body = JSON.stringify({ model: 'flotilla-sim', stream, messages: [{ role: 'user', content: 'hi' }] });
  const reading = (async () => {
    const response = await fetch(`${backend.url}/v1/chat/completions`, {
      method: 'POST',
      body,
      signal: leave.signal,
    });
    seen.status = response.status;
    seen.headers = response.headers;
    const decoder = new TextDecoder();
    for await (const bytes of response.body ?? []) seen.text += decoder.decode(bytes, { stream: true });
    return 'whole' as const;
  })().catch(() => 'broken' as const);
  // Silence cannot be waited for but by the clock; every other fault shows itself, late on a busy machine.
  const patience_ms = OPEN.includes(fault) ? 400 : 10_000;
  const ending = await Promise.race([reading, wait(patience_ms, 'open' as const, { ref: false })]);
  leave.abort();
  return { ...seen, ending };
}

const dataOf = (text: string) => [...text.matchAll(/^data: (.*)$/gm)].map((match) => match[1] ?? '');

function isJson(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

describe('each fault is what its name says', () => {
  const expected: Record<FaultName, (stream: Seen, whole: Seen) => void> = {
    refuse: (stream) => expect(stream).toMatchObject({ status: null, ending: 'broken' }),
    'reset-before-headers': (stream) => expect(stream).toMatchObject({ status: null, ending: 'broken' }),
    'reset-after-headers': (stream) =>
      expect(stream).toMatchObject({ status: 200, text: '', ending: 'broken' }),
    'stall-first-byte': (stream) => expect(stream).toMatchObject({ status: null, ending: 'open' }),
    'stall-mid-stream': (stream, whole) => {
      expect(stream).toMatchObject({ status: 200, ending: 'open' });
      expect(stream.text).toMatch(/\n\n$/);
      expect(dataOf(stream.text).length).toBeGreaterThan(2);
      expect(whole).toMatchObject({ status: 200, ending: 'open' });
      expect(whole.text).toMatch(/^\{"id"/);
    },
    'cut-mid-json': (stream, whole) => {
      for (const { ending, text } of [stream, whole]) {
        expect(ending).toBe('broken');
        expect(text.length).toBeGreaterThan(20);
        expect(isJson(dataOf(text).at(-1) ?? text)).toBe(false);
      }
    },
    'cut-mid-event': (stream) => {
      expect(stream.ending).toBe('whole');
      expect(stream.text).not.toMatch(/\n$/);
      expect(isJson(dataOf(stream.text).at(-1) ?? '')).toBe(false);
    },
    'no-done': (stream) => {
      expect(stream.ending).toBe('whole');
      expect(stream.text).toContain('"finish_reason":"stop"');
      expect(stream.text).not.toContain('[DONE]');
    },
    'error-event': (stream, whole) => {
      expect(stream.ending).toBe('whole');
      expect(JSON.parse(dataOf(stream.text).at(-1) ?? '')).toHaveProperty('error.message');
      expect(whole.status).toBe(500);
    },
    '429': (stream) => {
      expect(stream.status).toBe(429);
      expect(stream.headers?.get('retry-after')).toBeNull();
    },
    '429-retry-after': (stream) => {
      expect(stream.status).toBe(429);
      expect(stream.headers?.get('retry-after')).toBe('1');
    },
    '500': (stream) => expect(stream.status).toBe(500),
    '503': (stream) => expect(stream.status).toBe(503),
    'malformed-json': (stream, whole) => {
      expect(stream).toMatchObject({ status: 200, ending: 'whole' });
      expect(isJson(dataOf(stream.text)[0] ?? '')).toBe(false);
      expect(stream.text).toContain('[DONE]');
      expect(isJson(whole.text)).toBe(false);
    },
    'wrong-content-type': (stream) => {
      expect(stream).toMatchObject({ status: 200, ending: 'whole' });
      expect(stream.headers?.get('content-type')).toBe('text/html');
    },
    empty: (stream, whole) => {
      for (const seen of [stream, whole])
        expect(seen).toMatchObject({ status: 200, text: '', ending: 'whole' });
    },
    endless: (stream, whole) => {
      for (const seen of [stream, whole]) {
        expect(seen).toMatchObject({ status: 200, ending: 'open' });
        expect(seen.text.length).toBeGreaterThan(5);
      }
      expect(stream.text).not.toContain('"finish_reason":"stop"');
    },
    trickle: (stream) => {
      expect(stream).toMatchObject({ status: 200, ending: 'open' });
      expect(stream.text).not.toContain('[DONE]');
    },
  };

  test.each(FAULT_NAMES)('%s', async (name) => {
    await start(name);
    expect.hasAssertions();
    expected[name](await ask(true, name), await ask(false, name));
  });

  test('trickle gives the right answer in the end', async () => {
    await start('trickle');
    const openai = new OpenAI({ baseURL: `${backend.url}/v1`, apiKey: 'any', maxRetries: 0 });
    const messages = [{ role: 'user' as const, content: 'ünïcödé' }];
    const answer = await openai.chat.completions.create({ model: 'flotilla-sim', messages });
    expect(answer.choices[0]?.message.content).toContain('ünïcödé');
  });
});

describe('faults', () => {
  const post = (change: object) =>
    fetch(`${backend.url}/sim/fault`, { method: 'POST', body: JSON.stringify(change) });

  test('with a count end after that many requests', async () => {
    await start('503:2');
    expect([await ask(false), await ask(true), await ask(false)].map(({ status }) => status)).toEqual([
      503, 503, 200,
    ]);
  });

  test('refuse with a count resets that many connections', async () => {
    await start('refuse:1');
    const { port } = new URL(backend.url);
    const socket = connect(Number(port), '127.0.0.1');
    const [error] = (await once(socket, 'error')) as [NodeJS.ErrnoException];
    expect(error.code).toBe('ECONNRESET');
    expect((await ask(false)).status).toBe(200);
  });

  test('are switched while it runs', async () => {
    await start('500');
    expect((await ask(false)).status).toBe(500);
    await post({ fault: null });
    expect((await ask(false)).status).toBe(200);
    await post({ fault: '429', first: 1 });
    expect((await ask(false)).status).toBe(429);
    expect((await ask(false)).status).toBe(200);
    const wrong = await post({ fault: 'sulk' });
    expect(wrong.status).toBe(400);
  });

  test('end after for_ms; a refusing port is closed in the meantime', async () => {
    await start('no-done');
    await post({ fault: 'refuse', for_ms: 300 });
    const { port } = new URL(backend.url);
    const socket = connect(Number(port), '127.0.0.1');
    const [error] = (await once(socket, 'error')) as [NodeJS.ErrnoException];
    expect(error.code).toBe('ECONNREFUSED');
    await vi.waitFor(async () => expect((await ask(false)).status).toBe(200), 5000);
  });

  test('with a wrong name or count are refused with the names there are', () => {
    expect(parseFault('sulk')).toContain('stall-first-byte');
    expect(parseFault('500:0')).toContain('1 at least');
    expect(parseFault('500:3')).toEqual({ name: '500', left: 3 });
  });
});
