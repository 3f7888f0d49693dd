import { createServer, type Socket } from 'node:net';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { LinkBench } from '../testing/link-bench.ts';
import { delta, sse } from '../testing/scripted-backend.ts';

let bench: LinkBench;
beforeEach(() => {
  bench = new LinkBench();
});
afterEach(() => bench.stop());

const usage = {
  prompt_tokens: 7,
  completion_tokens: 2,
  total_tokens: 9,
  prompt_tokens_details: { cached_tokens: 4 },
};
const tokens = { prompt_tokens: 7, completion_tokens: 2, cached_tokens: 4, estimated: false };
const usageOnly = { id: 'c', choices: [], usage };
const streamed = sse(delta('Hel'), delta('lo ünï'), delta('', 'stop'));
const whole = sse(delta('x'), delta('', 'stop'), '[DONE]');

describe('an answer', () => {
  test('reaches the control plane as it came: head, body, end and result, in one write', async () => {
    const body = `{"choices":[{"message":{"content":"hi \\u00e9"}}],"seed":9007199254740993,"usage":${JSON.stringify(usage)}}`;
    bench.backend.answer = ({ response }) => {
      response.writeHead(200, {
        'content-type': 'application/json; charset=utf-8',
        'x-request-id': 'backend-1',
        server: 'secret-host',
        'openai-version': '2020',
        'retry-after-ms': '5',
      });
      response.end(body);
    };
    await bench.start();
    await bench.up();
    const stream = bench.control.offer('job_a', { body: '{"model":"m","n":12345678901234567890}' });
    const completed = await bench.control.message('job.completed', 'job_a');
    const seen = bench.control.stream(stream);
    expect(seen.head).toEqual({
      status: 200,
      headers: {
        'content-type': 'application/json; charset=utf-8',
        'openai-version': '2020',
        'retry-after-ms': '5',
      },
    });
    expect(seen.body.toString()).toBe(body);
    expect(seen.end).toEqual({ length: Buffer.byteLength(body), complete: true });
    expect(completed.result).toEqual({ status: 200, length: Buffer.byteLength(body) });
    expect(completed.usage).toEqual(tokens);
    // Head, body, end and result are the last four messages: one read of the socket brought them all.
    expect(new Set(bench.control.reads.slice(-4)).size).toBe(1);
    const [request] = bench.backend.requests;
    expect(request?.path).toBe('/v1/chat/completions');
    expect(request?.body).toBe('{"model":"m","n":12345678901234567890}');
    expect(request?.headers).toMatchObject({
      'accept-encoding': 'identity',
      'content-type': 'application/json',
      'x-own': 'my-own-key',
      'x-request-id': 'req-job_a',
    });
    expect(bench.control.all('job.accepted')).toEqual([]);
    expect(bench.control.all('job.started').length).toBe(1);
  });

  test.each([
    ['completions', '/v1/completions'],
    ['embeddings', '/v1/embeddings'],
  ] as const)('to %s is asked for at %s', async (operation, path) => {
    await bench.start();
    await bench.up();
    bench.control.offer('job_a', { operation });
    await bench.control.message('job.completed', 'job_a');
    expect(bench.backend.requests[0]?.path).toBe(path);
  });

  test('of many megabytes passes whole, with its usage, while the backend waits for the client', async () => {
    const body = `{"data":"${'x'.repeat(5_000_000)}","usage":${JSON.stringify(usage)}}`;
    bench.backend.answer = ({ response }) => response.end(body);
    bench.control.credit_streams = false;
    await bench.start();
    await bench.up();
    const stream = bench.control.offer('job_a');
    const seen = bench.control.stream(stream);
    await bench.control.until(() => seen.length === 256 * 1024);
    bench.control.credit_streams = true;
    bench.control.credit(stream, seen.length);
    const completed = await bench.control.message('job.completed', 'job_a');
    expect(seen.body.equals(Buffer.from(body))).toBe(true);
    expect(completed.usage).toEqual(tokens);
  });

  test('that refuses the request and repeats the key leaves the machine without it', async () => {
    bench.backend.answer = ({ response }) =>
      void response.writeHead(400).end('{"error":"bad key: my-own-key"}');
    await bench.start();
    await bench.up();
    const stream = bench.control.offer('job_a');
    await bench.control.message('job.completed', 'job_a');
    expect(bench.control.stream(stream).body.toString()).toBe('{"error":"bad key: ***"}');
  });

  test('to a request body of megabytes arrives as well, acknowledged on its way', async () => {
    await bench.start();
    await bench.up();
    const body = `{"model":"m","messages":[{"content":"${'é'.repeat(1_000_000)}"}]}`;
    bench.control.offer('job_a', { body });
    await bench.control.message('job.completed', 'job_a');
    expect(bench.backend.requests[0]?.body).toBe(body);
    expect(bench.control.all('job.accepted').length).toBe(1);
    expect(bench.control.all('stream.credit').length).toBeGreaterThan(10);
    expect(bench.control.all('link.ack').length).toBeGreaterThan(10);
  });

  test('without a count of tokens is estimated, and says so', async () => {
    bench.backend.answer = ({ response }) => response.end('{"choices":[]}  ');
    await bench.start();
    await bench.up();
    bench.control.offer('job_a', { body: '{"model":"m","messages":[]} ' });
    const { usage: estimated } = await bench.control.message('job.completed', 'job_a');
    expect(estimated).toEqual({ prompt_tokens: 7, completion_tokens: 4, cached_tokens: 0, estimated: true });
  });

  test.each([400, 413, 422])('of status %i is about the request and goes to the client', async (status) => {
    bench.backend.answer = ({ response }) =>
      response.writeHead(status).end('{"error":{"message":"too long"}}');
    await bench.start();
    await bench.up();
    const stream = bench.control.offer('job_a');
    const { result } = await bench.control.message('job.completed', 'job_a');
    expect(result.status).toBe(status);
    expect(bench.control.stream(stream).body.toString()).toContain('too long');
  });
});

describe('a stream', () => {
  const answerWith = (events: string) => {
    bench.backend.answer = ({ response }) => {
      response.setHeader('content-type', 'text/event-stream');
      response.end(events);
    };
  };

  test('is asked for its usage where the client left that open, and the usage event is left out', async () => {
    answerWith(streamed + sse(usageOnly, '[DONE]'));
    await bench.start();
    await bench.up();
    const stream = bench.control.offer('job_a', {
      streaming: true,
      add_usage: true,
      body: '{"model":"m", "stream":true}',
    });
    const completed = await bench.control.message('job.completed', 'job_a');
    expect(completed.usage).toEqual(tokens);
    expect(bench.control.stream(stream).body.toString()).toBe(streamed + sse('[DONE]'));
    expect(bench.backend.requests[0]?.body).toBe(
      '{"model":"m", "stream":true,"stream_options":{"include_usage":true}}',
    );
    expect(bench.backend.requests[0]?.headers.accept).toBe('text/event-stream');
  });

  test('whose client asked for usage itself passes untouched', async () => {
    const events = streamed + sse(usageOnly, '[DONE]');
    answerWith(events);
    await bench.start();
    await bench.up();
    const stream = bench.control.offer('job_a', { streaming: true });
    const completed = await bench.control.message('job.completed', 'job_a');
    expect(completed.usage).toEqual(tokens);
    expect(bench.control.stream(stream).body.toString()).toBe(events);
  });

  test('of a backend that refuses include_usage is asked for again without it, once and for all', async () => {
    bench.backend.answer = ({ body, response }) => {
      if (body.includes('stream_options')) {
        response.writeHead(422).end('{"detail":"extra fields not permitted"}');
        return;
      }
      response.setHeader('content-type', 'text/event-stream');
      response.end(streamed + sse('[DONE]'));
    };
    await bench.start();
    await bench.up();
    const body = '{"model":"m","stream":true}';
    bench.control.offer('job_a', { streaming: true, add_usage: true, body });
    const completed = await bench.control.message('job.completed', 'job_a');
    expect(completed.usage).toEqual({
      prompt_tokens: 7,
      completion_tokens: Math.ceil(('Hel'.length + Buffer.byteLength('lo ünï')) / 4),
      cached_tokens: 0,
      estimated: true,
    });
    expect(bench.backend.requests.length).toBe(2);
    bench.control.offer('job_b', { streaming: true, add_usage: true, body });
    await bench.control.message('job.completed', 'job_b');
    expect(bench.backend.requests.map((request) => request.body.includes('include_usage'))).toEqual([
      true,
      false,
      false,
    ]);
  });

  test('refused for another reason than include_usage is refused to the client, and nothing is remembered', async () => {
    bench.backend.answer = ({ response }) => response.writeHead(400).end('{"error":{"message":"context"}}');
    await bench.start();
    await bench.up();
    bench.control.offer('job_a', { streaming: true, add_usage: true });
    const { result } = await bench.control.message('job.completed', 'job_a');
    expect(result.status).toBe(400);
    bench.control.offer('job_b', { streaming: true, add_usage: true });
    await bench.control.message('job.completed', 'job_b');
    expect(bench.backend.requests.filter((request) => request.body.includes('include_usage')).length).toBe(2);
  });

  test.each([
    ['breaks off', () => undefined],
    ['ends without a finish', (socket: { end: () => void }) => socket.end()],
  ])('that %s ends as cut and failed, after what it had said', async (_how, finish) => {
    bench.backend.answer = ({ response }) => {
      response.setHeader('content-type', 'text/event-stream');
      response.write(sse(delta('half')), () => {
        finish(response);
        if (!response.writableEnded) response.socket?.resetAndDestroy();
      });
    };
    await bench.start();
    await bench.up();
    const stream = bench.control.offer('job_a', { streaming: true });
    const failed = await bench.control.message('job.failed', 'job_a');
    expect(failed).toMatchObject({ code: 'backend_error', retryable: true });
    expect(failed.usage).toMatchObject({ estimated: true, completion_tokens: 1 });
    expect(bench.control.stream(stream).body.toString()).toBe(sse(delta('half')));
    expect(bench.control.stream(stream).end?.complete).toBe(false);
  });

  test.each([
    ['its backend resets the connection then', (socket: Socket) => socket.resetAndDestroy(), ''],
    ['its backend never ends it', () => undefined, ''],
    ['more follows than anybody reads', () => undefined, 'x'.repeat(1_000_000)],
    ['that is said twice', () => undefined, 'data: [DONE]\n\ndata: bye\n\n'],
  ])('is whole with its [DONE], although %s', async (_how, then, more) => {
    bench.backend.answer = ({ response }) => {
      response.setHeader('content-type', 'text/event-stream');
      response.write(whole, () => {
        setTimeout(() => {
          then(response.socket!);
          if (more !== '') response.write(more);
        }, 20);
      });
    };
    bench.control.credit_streams = false;
    await bench.start();
    await bench.up();
    const stream = bench.control.offer('job_a', { streaming: true });
    await bench.control.message('job.completed', 'job_a');
    const { body, end } = bench.control.stream(stream);
    expect(body.toString().startsWith(whole)).toBe(true);
    expect(body.length).toBeLessThan(256 * 1024);
    expect(end).toEqual({ length: body.length, complete: true });
    expect(bench.posts('backend_failed')).toEqual([]);
  });

  test('is whole with its [DONE], though it is said twice in one piece', async () => {
    answerWith(`${whole}data: [DONE]\n\ndata: bye\n\n`);
    await bench.start();
    await bench.up();
    const stream = bench.control.offer('job_a', { streaming: true });
    await bench.control.message('job.completed', 'job_a');
    expect(bench.control.stream(stream).body.toString().startsWith(whole)).toBe(true);
    expect(bench.posts('backend_failed')).toEqual([]);
  });

  const broken = [
    [
      'with an error',
      sse({ error: { message: 'CUDA out of memory at 10.0.0.7' } }, '[DONE]'),
      'The backend reported an error in its stream.',
    ],
    [
      'with an event that is not JSON',
      'data: {oops "a": 1}\n\ndata: [DONE]\n\n',
      'The backend sent an event that is not JSON.',
    ],
  ] as const;
  test.each(broken)(
    'that begins %s passes nothing on, so that another may answer',
    async (_what, events, message) => {
      answerWith(sse(delta('x')) + events);
      await bench.start();
      await bench.up();
      const stream = bench.control.offer('job_a', { streaming: true });
      expect((await bench.control.message('job.failed', 'job_a')).message).toBe(message);
      expect(bench.control.stream(stream).body.toString()).toBe('');
      expect(bench.control.stream(stream).end?.complete).toBe(false);
    },
  );

  test.each(broken)('that goes on %s is recorded as failed', async (_what, events, message) => {
    bench.backend.answer = ({ response }) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(sse(delta('x')));
      void bench.control
        .until(() => bench.control.stream(stream).body.length > 0)
        .then(() => response.end(events));
    };
    await bench.start();
    await bench.up();
    const stream = bench.control.offer('job_a', { streaming: true });
    expect((await bench.control.message('job.failed', 'job_a')).message).toBe(message);
    expect(bench.control.stream(stream).body.toString()).toMatch(/^data: .*"x"/);
    expect(bench.control.stream(stream).end?.complete).toBe(false);
  });
});

describe('a failing backend', () => {
  test.each([500, 503, 429, 404, 401, 403, 408, 302])(
    'that answers %i fails the attempt without head or body',
    async (status) => {
      bench.backend.answer = ({ response }) => {
        response.writeHead(status, { 'retry-after': '3', location: 'http://10.0.0.7/elsewhere' });
        response.end('{"error":{"message":"host 10.0.0.7 is unhappy"}}');
      };
      await bench.start();
      await bench.up();
      const stream = bench.control.offer('job_a');
      const failed = await bench.control.message('job.failed', 'job_a');
      expect(failed).toMatchObject({ code: 'backend_error', status, retryable: true, retry_after_ms: 3000 });
      expect(failed.message).not.toContain('10.0.0.7');
      expect(bench.control.stream(stream)).toMatchObject({ head: null, end: null });
      expect(bench.backend.requests.length).toBe(1);
      expect(bench.posts('backend_failed').length).toBe(status === 429 || status === 408 ? 0 : 1);
    },
  );

  test.each(['Infinity', '1e400', '-1', 'Wed, 21 Oct 2099 07:28:00 GMT'])(
    'that asks to be left alone for %s is reported without a time',
    async (asked) => {
      bench.backend.answer = ({ response }) => {
        response.writeHead(429, { 'retry-after': asked, 'retry-after-ms': asked });
        response.end();
      };
      await bench.start();
      await bench.up();
      bench.control.offer('job_a');
      const failed = await bench.control.message('job.failed', 'job_a');
      expect(failed).not.toHaveProperty('retry_after_ms');
    },
  );

  test('that refuses connections, or resets them, fails the attempt without naming its address', async () => {
    const sockets: Socket[] = [];
    const rude = createServer((socket) => {
      sockets.push(socket);
      socket.once('data', () => socket.resetAndDestroy());
    });
    await new Promise<void>((resolve) => rude.listen(0, '127.0.0.1', resolve));
    const { port } = rude.address() as AddressInfo;
    await bench.start(0, (data) => ({
      ...data,
      backends: [{ id: 'main', base_url: `http://127.0.0.1:${port}/v1`, pool: 'main', headers: {} }],
    }));
    await bench.up();
    bench.control.offer('job_a');
    const reset = await bench.control.message('job.failed', 'job_a');
    await new Promise((resolve) => rude.close(resolve));
    bench.control.offer('job_b');
    const refused = await bench.control.message('job.failed', 'job_b');
    expect(reset).toMatchObject({ retryable: true, message: 'The backend reset the connection.' });
    expect(refused).toMatchObject({ retryable: true, message: 'The backend refused the connection.' });
    expect(sockets.length).toBe(1);
  });

  test('that closed an idle connection just now is asked again, unseen', async () => {
    let connections = 0;
    const answer = 'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}';
    const impatient = createServer((socket) => {
      connections++;
      socket.on('error', () => undefined);
      // Serves one request on each connection and hangs up on the second.
      socket.once('data', () => {
        socket.write(answer);
        socket.once('data', () => socket.end());
      });
    });
    await new Promise<void>((resolve) => impatient.listen(0, '127.0.0.1', resolve));
    const { port } = impatient.address() as AddressInfo;
    await bench.start(0, (data) => ({
      ...data,
      backends: [{ id: 'main', base_url: `http://127.0.0.1:${port}`, pool: 'main', headers: {} }],
    }));
    await bench.up();
    bench.control.offer('job_a');
    await bench.control.message('job.completed', 'job_a');
    bench.control.offer('job_b');
    await bench.control.message('job.completed', 'job_b');
    expect(connections).toBe(2);
    impatient.close();
  });

  test('that compresses its answer, or speaks no HTTP, is failed rather than passed on', async () => {
    bench.backend.answer = ({ response }) => {
      response.writeHead(200, { 'content-encoding': 'gzip' }).end('....');
    };
    await bench.start();
    await bench.up();
    bench.control.offer('job_a');
    expect((await bench.control.message('job.failed', 'job_a')).message).toContain('compressed');
    bench.backend.answer = ({ response }) => response.socket?.end('SSH-2.0-OpenSSH\r\n');
    bench.control.offer('job_b');
    expect((await bench.control.message('job.failed', 'job_b')).message).toBe(
      "The backend's answer is not HTTP.",
    );
  });
});

describe('deadlines', () => {
  test.each([
    ['first_byte_ms', 'backend_error', 'The backend sent nothing for 0.05 s.', false],
    ['idle_ms', 'backend_error', 'The backend fell silent for 0.05 s in the middle of its answer.', true],
    ['run_ms', 'run_timeout', 'The work ran longer than its 0.05 s.', true],
  ])('%s ends the attempt and frees the backend', async (which, code, message, begins) => {
    bench.backend.answer = ({ response }) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      if (begins) response.write(sse(delta('x')));
    };
    await bench.start();
    await bench.up();
    const stream = bench.control.offer('job_a', { streaming: true, deadlines: { [which]: 50 } });
    const failed = await bench.control.message('job.failed', 'job_a');
    expect(failed).toMatchObject({ code, message });
    await bench.control.until(() => bench.backend.requests[0]?.aborted === true);
    expect(bench.control.stream(stream).end?.complete ?? false).toBe(false);
  });

  test('a client that takes nothing is not the silence of the backend', async () => {
    bench.backend.answer = ({ response }) => response.end(Buffer.alloc(3_000_000));
    bench.control.credit_streams = false;
    await bench.start();
    await bench.up();
    const stream = bench.control.offer('job_a', { deadlines: { idle_ms: 60 } });
    const other = bench.control.offer('job_b', { deadlines: { idle_ms: 60, run_ms: 300 } });
    const failed = await bench.control.message('job.failed', 'job_b');
    expect(failed.code).toBe('run_timeout');
    expect(bench.control.all('job.failed', 'job_a')).toEqual([]);
    expect([stream, other].map((number) => bench.control.stream(number).length)).toEqual([262_144, 262_144]);
  });
});
