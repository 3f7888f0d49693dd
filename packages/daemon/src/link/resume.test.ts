import type { ServerResponse } from 'node:http';
import { OutStream } from '@flotilla/core';
import { FRAME_KIND, type Verdict, readInventory } from '@flotilla/protocol';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { LinkBench } from '../testing/link-bench.ts';
import { delta, sse } from '../testing/scripted-backend.ts';

let bench: LinkBench;
beforeEach(() => {
  bench = new LinkBench();
});
afterEach(() => bench.stop());

/** The backend's answer is in the test's hands. */
function holdAnswers(): ServerResponse[] {
  const open: ServerResponse[] = [];
  bench.backend.answer = ({ response }) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    response.flushHeaders();
    open.push(response);
  };
  return open;
}
const inventory = (registration: number) => bench.control.registrations[registration]?.inventory ?? [];

describe('after a reconnect with the same boot id', () => {
  test('a kept stream goes on without a repeated or missing byte', async () => {
    const open = holdAnswers();
    await bench.start();
    await bench.up();
    const { control } = bench;
    const first = control.offer('job_a', { streaming: true });
    await control.until(() => open.length === 1);
    const head_events = sse(delta('one'), delta('two'));
    open[0]!.write(head_events);
    await control.until(() => control.stream(first).length === head_events.length);
    const kept = 40;
    let second = 0;
    control.verdicts = (item) => {
      expect(item).toMatchObject({ job: 'job_a', state: 'running', owner: 'rep_1' });
      second = control.newStream();
      control.continueStream(second, control.stream(first).body.subarray(0, kept));
      return { verdict: 'keep', stream: second, acked_offset: kept, head_received: true };
    };
    control.socket?.terminate();
    await control.until(() => bench.posts('disconnected').length === 1);
    // What the backend says while no link stands is kept for the next one.
    open[0]!.write(sse(delta('three')));
    await bench.up(2);
    const last = sse(delta('', 'stop'), '[DONE]');
    open[0]!.end(last);
    const completed = await control.message('job.completed', 'job_a');
    const seen = control.stream(second);
    expect(seen.body.toString()).toBe(head_events + sse(delta('three')) + last);
    expect(seen).toMatchObject({ gaps: 0, heads: 0, end: { length: seen.length, complete: true } });
    expect(completed.result.length).toBe(seen.length);
    expect(bench.backend.requests.length).toBe(1);
  });

  test('a finished answer whose result was not acknowledged is sent again, head included', async () => {
    bench.control.ack_results = false;
    await bench.start();
    await bench.up();
    const { control } = bench;
    const first = control.offer('job_a');
    await control.message('job.completed', 'job_a');
    let second = 0;
    control.verdicts = () => {
      second = control.newStream();
      return { verdict: 'keep', stream: second, acked_offset: 0, head_received: false };
    };
    control.ack_results = true;
    control.socket?.terminate();
    const again = await control.message('job.completed', 'job_a', 2);
    expect(inventory(1)).toMatchObject([
      { job: 'job_a', state: 'finished', stream_offset: again.result.length },
    ]);
    expect(control.stream(second).body.equals(control.stream(first).body)).toBe(true);
    expect(control.stream(second).heads).toBe(1);
    await control.until(() => bench.link.attempts.size === 0);
  });

  test('a failure whose result was not acknowledged is sent again', async () => {
    bench.control.ack_results = false;
    bench.backend.answer = ({ response }) => response.writeHead(500).end();
    await bench.start();
    await bench.up();
    const { control } = bench;
    control.offer('job_a');
    await control.message('job.failed', 'job_a');
    control.verdicts = () => ({ verdict: 'keep', stream: control.newStream(), acked_offset: 0 });
    control.socket?.terminate();
    expect(await control.message('job.failed', 'job_a', 2)).toMatchObject({ status: 500 });
  });

  test('a request body that was under way goes on where it was', async () => {
    await bench.start();
    await bench.up();
    const { control } = bench;
    const body = Buffer.from(`{"model":"m","pad":"${'x'.repeat(300_000)}"}`);
    const out = new OutStream({ kind: FRAME_KIND.requestBody });
    const stream = control.offer('job_a', { without_body: true, body_length: body.length });
    out.push(body.subarray(0, 100_000));
    control.outbox?.attach(stream, out, { acked_offset: 0, head_received: true });
    await control.message('job.accepted', 'job_a');
    await control.until(() => control.all('stream.credit').length === 1);
    control.verdicts = (item) => {
      const next = control.newStream();
      queueMicrotask(() => {
        control.outbox?.attach(next, out, { acked_offset: item.body_offset, head_received: true });
        out.push(body.subarray(100_000));
        out.end('complete');
      });
      return { verdict: 'keep', stream: next, acked_offset: 0 };
    };
    control.socket?.terminate();
    await control.message('job.completed', 'job_a');
    expect(bench.backend.requests[0]?.body).toBe(body.toString());
  });

  test('what is to be abandoned is stopped and answered, what must wait is asked about again', async () => {
    const open = holdAnswers();
    await bench.start();
    await bench.up();
    const { control } = bench;
    control.offer('job_a', { streaming: true });
    control.offer('job_b', { streaming: true });
    await control.until(() => open.length === 2);
    let waits = 0;
    control.verdicts = ({ job }): Partial<Verdict> => {
      if (job === 'job_a') return { verdict: 'abandon' };
      if (waits++ < 1) return { verdict: 'wait' };
      return { verdict: 'keep', stream: control.newStream(), acked_offset: 0, head_received: false };
    };
    control.socket?.terminate();
    expect(await control.message('job.released', 'job_a')).toMatchObject({ started: true });
    await control.until(() => bench.backend.requests[0]?.aborted === true);
    const sync = await control.message('inventory.sync');
    expect(readInventory(sync.inventory).map((item) => item.job)).toEqual(['job_b']);
    open[1]!.end(sse(delta('x', 'stop'), '[DONE]'));
    await control.message('job.completed', 'job_b');
  });

  test('a verdict that cannot be served, or is about nothing known, is answered by a release', async () => {
    const open = holdAnswers();
    await bench.start();
    await bench.up();
    const { control } = bench;
    control.offer('job_a', { streaming: true });
    await control.until(() => open.length === 1);
    control.verdicts = () => ({ verdict: 'keep', stream: control.newStream(), acked_offset: 1_000_000 });
    control.socket?.terminate();
    await control.message('job.released', 'job_a');
    control.send({
      type: 'inventory.verdicts',
      verdicts: [{ job: 'job_z', attempt: 3, verdict: 'keep', stream: 99, acked_offset: 0 }],
    });
    expect(await control.message('job.released', 'job_z')).toMatchObject({ attempt: 3, started: false });
  });

  test('the same verdict twice does not take the stream back', async () => {
    const open = holdAnswers();
    await bench.start();
    await bench.up();
    const { control } = bench;
    const stream = control.offer('job_a', { streaming: true });
    await control.until(() => open.length === 1);
    open[0]!.write(sse(delta('one')));
    await control.until(() => control.stream(stream).length > 0);
    control.verdicts = () => ({ verdict: 'keep', stream, acked_offset: 0, head_received: false });
    control.want = ['inventory'];
    await control.message('inventory.sync');
    open[0]!.end(sse(delta('', 'stop'), '[DONE]'));
    await control.message('job.completed', 'job_a');
    expect(control.stream(stream)).toMatchObject({ gaps: 0, heads: 1 });
  });
});

describe('an offer that comes again', () => {
  test('changes nothing and is answered as the attempt stands', async () => {
    const open = holdAnswers();
    bench.control.ack_results = false;
    await bench.start();
    await bench.up();
    const { control } = bench;
    const stream = control.offer('job_a', { without_body: true });
    await control.message('job.accepted', 'job_a');
    control.offer('job_a', { without_body: true });
    await control.message('job.accepted', 'job_a', 2);
    const out = new OutStream({ kind: FRAME_KIND.requestBody });
    out.push(Buffer.from('{"model":"m","messages":[]}'));
    out.end('complete');
    control.outbox?.attach(stream, out, { acked_offset: 0, head_received: true });
    await control.until(() => open.length === 1);
    control.offer('job_a', { without_body: true });
    await control.message('job.started', 'job_a', 2);
    open[0]!.end(sse(delta('x', 'stop'), '[DONE]'));
    await control.message('job.completed', 'job_a');
    control.offer('job_a', { without_body: true });
    await control.message('job.completed', 'job_a', 2);
    expect(bench.backend.requests.length).toBe(1);
    expect(bench.link.attempts.size).toBe(1);
    control.send({ type: 'result.ack', job: 'job_a', attempt: 1, outcome: 'duplicate' });
    await control.until(() => bench.link.attempts.size === 0 && bench.posts('load').length > 0);
  });

  test('with another attempt number is another attempt', async () => {
    await bench.start();
    await bench.up();
    bench.control.offer('job_a', { attempt: 1 });
    bench.control.offer('job_a', { attempt: 2 });
    await bench.control.message('job.completed', 'job_a', 2);
    expect(bench.backend.requests.length).toBe(2);
  });
});

describe('cancelling', () => {
  test.each(['job.cancel', 'job.abandon'])(
    'by %s stops the backend within 500 ms and frees the slot',
    async (type) => {
      const open = holdAnswers();
      bench.slots = 1;
      await bench.start();
      await bench.up();
      const { control } = bench;
      control.offer('job_a', { streaming: true });
      await control.until(() => open.length === 1);
      open[0]!.write(sse(delta('one')));
      await control.until(() => control.streams.get(1)?.length !== undefined && control.stream(1).length > 0);
      const begun = performance.now();
      control.send({ type, job: 'job_a', attempt: 1, reason: 'the client left' });
      const released = await control.message('job.released', 'job_a');
      await control.until(() => bench.backend.requests[0]?.aborted === true);
      expect(performance.now() - begun).toBeLessThan(500);
      expect(released).toMatchObject({ started: true, usage: { completion_tokens: 1, estimated: true } });
      bench.backend.answer = ({ response }) => response.end('{}');
      control.offer('job_b');
      await control.message('job.completed', 'job_b');
    },
  );

  test('before the first byte, or while the request body is still under way, works the same', async () => {
    const open = holdAnswers();
    await bench.start();
    await bench.up();
    const { control } = bench;
    control.offer('job_a');
    control.offer('job_b', { without_body: true });
    await control.until(() => open.length === 1 && control.all('job.accepted').length === 1);
    control.send({ type: 'job.cancel', job: 'job_a', attempt: 1 });
    control.send({ type: 'job.cancel', job: 'job_b', attempt: 1 });
    expect(await control.message('job.released', 'job_a')).toMatchObject({ started: true });
    expect(await control.message('job.released', 'job_b')).toMatchObject({ started: false });
    await control.until(() => bench.backend.requests[0]?.aborted === true);
  });

  test('what has ended is answered by its result, what is unknown by a release', async () => {
    bench.control.ack_results = false;
    await bench.start();
    await bench.up();
    const { control } = bench;
    control.offer('job_a');
    await control.message('job.completed', 'job_a');
    control.send({ type: 'job.cancel', job: 'job_a', attempt: 1 });
    await control.message('job.completed', 'job_a', 2);
    control.send({ type: 'job.abandon', job: 'job_b', attempt: 7, reason: 'withdrawn' });
    expect(await control.message('job.released', 'job_b')).toMatchObject({ attempt: 7, started: false });
  });
});
