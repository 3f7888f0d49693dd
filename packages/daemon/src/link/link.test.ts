import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { type AddressInfo, type Server, createServer } from 'node:net';
import { MESSAGE_MAX_BYTES, STORE_OWNER, encodeFrame } from '@flotilla/protocol';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { LinkBench } from '../testing/link-bench.ts';
import { delta, sse } from '../testing/scripted-backend.ts';

let bench: LinkBench;
beforeEach(() => {
  bench = new LinkBench();
});
afterEach(() => bench.stop());

function holdAnswers(): ServerResponse[] {
  const open: ServerResponse[] = [];
  bench.backend.answer = ({ response }) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    response.flushHeaders();
    open.push(response);
  };
  return open;
}

describe('the link', () => {
  test('registers with its credential, descriptor and health, and beats from then on', async () => {
    bench.control.heartbeat_ms = 100;
    await bench.start();
    await bench.up();
    const { control } = bench;
    await control.message('node.heartbeat', undefined, 3);
    expect(control.authorizations).toEqual(['Bearer fln_test']);
    expect(control.registrations[0]).toMatchObject({
      boot_id: 'boot_1',
      protocol: { min: 1, max: 1 },
      descriptor_hash: 'hash-1',
      descriptor: { name: 'tester' },
      inventory: [],
      backends: [{ id: 'main', health: 'healthy' }],
    });
    expect(control.all('node.heartbeat')[2]).toMatchObject({
      seq: 3,
      pools: [{ id: 'main', in_flight: 0, capacity: 4 }],
      draining: false,
      descriptor_hash: 'hash-1',
    });
    expect(bench.posts('connected')[0]).toMatchObject({
      node_id: 'node_1',
      name: 'tester',
      heartbeat_ms: 100,
    });
    expect(bench.posts('acked').length).toBeGreaterThanOrEqual(2);
  });

  test('beats at once when health changed, and says so with the descriptor when that did', async () => {
    bench.control.heartbeat_ms = 60_000;
    await bench.start();
    await bench.up();
    const data = bench.data();
    bench.link.hear({
      type: 'health',
      health: [{ id: 'main', health: 'down', reason: 'refused', models: [] }],
    });
    expect((await bench.control.message('node.heartbeat')).backends[0]).toMatchObject({ health: 'down' });
    const descriptor = {
      ...data.descriptor,
      pools: [{ id: 'main', capacity: 9, capacity_from: 'config' as const }],
    };
    const { backends, health } = data;
    bench.link.hear({ type: 'descriptor', descriptor, descriptor_hash: 'hash-2', backends, health });
    expect(await bench.control.message('descriptor.update')).toMatchObject({ descriptor_hash: 'hash-2' });
    const beat = await bench.control.message('node.heartbeat', undefined, 2);
    expect(beat).toMatchObject({ descriptor_hash: 'hash-2', pools: [{ capacity: 9 }] });
  });

  test('sends what an acknowledgement wants, and tells the main thread what the operator wants', async () => {
    bench.control.heartbeat_ms = 100;
    bench.control.want = ['descriptor', 'inventory', 'something-new'];
    bench.control.drain_ms = 5000;
    await bench.start();
    await bench.control.message('descriptor.update');
    await bench.control.message('inventory.sync');
    await bench.control.until(() => bench.posts('acked').length > 0);
    expect(bench.posts('acked')[0]).toMatchObject({ cordoned: false, drain_ms: 5000 });
  });

  test('reconnects when its beats go unanswered for twice the interval', async () => {
    bench.control.heartbeat_ms = 100;
    bench.control.ack_beats = false;
    await bench.start();
    await bench.up();
    const begun = performance.now();
    await bench.control.until(() => bench.posts('disconnected').length === 1);
    expect(performance.now() - begun).toBeGreaterThanOrEqual(190);
    expect(bench.posts('disconnected')[0]?.reason).toContain('No beat was acknowledged');
    bench.control.ack_beats = true;
    await bench.up(2);
  });

  test('a beat that was acknowledged for attached work alone counts for all when it is acknowledged again', async () => {
    const open = holdAnswers();
    bench.control.heartbeat_ms = 1000;
    bench.control.renews = 'attached';
    await bench.start();
    await bench.up();
    const { control } = bench;
    control.offer('job_a', { owner: STORE_OWNER });
    await control.until(() => open.length === 1);
    const { seq } = await control.message('node.heartbeat', undefined, 2);
    control.send({ type: 'node.heartbeat.ack', seq, server_time: '', epoch: 1 });
    // By now the lease of detached work would be over that began with the registration.
    await control.message('node.heartbeat', undefined, 3);
    expect([bench.link.attempts.live, bench.posts('fenced')]).toEqual([1, []]);
    await control.until(() => bench.posts('fenced').length === 1);
    expect(bench.backend.requests.length).toBe(1);
  });

  test('survives whatever the control plane sends', async () => {
    await bench.start();
    await bench.up();
    const { control } = bench;
    const texts = [
      '{',
      '[]',
      '{"type":"from.the.future","id":"7"}',
      '{"type":"job.offer"}',
      '{"type":"result.ack","job":3}',
    ];
    for (const text of texts) control.socket?.send(text);
    const frames = [
      Buffer.alloc(0),
      Buffer.alloc(5),
      Buffer.alloc(13, 0xff),
      encodeFrame(3, 1, 0, Buffer.from('x')),
      encodeFrame(1, 77, 0, Buffer.from('for nobody')),
      encodeFrame(4, 77, 10, Buffer.of(0)),
    ];
    for (const frame of frames) control.socket?.send(frame);
    control.send({ type: 'stream.credit', stream: 400, acked_offset: 10 });
    control.send({ type: 'link.ack', received: 1e12 });
    control.send({ type: 'node.heartbeat.ack', seq: 999, server_time: '', epoch: 1 });
    control.send({ type: 'result.ack', job: 'job_x', attempt: 1, outcome: 'stale' });
    control.send({ type: 'inventory.verdicts', verdicts: [] });
    await control.until(() => control.all('error').length === texts.length + 4);
    expect(control.all('error').find((error) => error.id === '7')?.message).toContain('from.the.future');
    control.offer('job_a');
    await control.message('job.completed', 'job_a');
    expect(control.connections).toBe(1);
  });

  test('fails an attempt whose body does not arrive as offered, and goes on', async () => {
    await bench.start();
    await bench.up();
    const { control } = bench;
    const hole = control.offer('job_a', { without_body: true, body_length: 10 });
    control.socket?.send(encodeFrame(1, hole, 5, Buffer.from('12345')));
    const short = control.offer('job_b', { without_body: true, body_length: 10 });
    control.socket?.send(encodeFrame(4, short, 0, Buffer.of(0)));
    const cut = control.offer('job_c', { without_body: true, body_length: 10 });
    control.socket?.send(encodeFrame(4, cut, 0, Buffer.of(1)));
    expect(await control.message('job.failed', 'job_a')).toMatchObject({
      code: 'invalid_request',
      retryable: false,
    });
    await control.message('job.failed', 'job_b');
    await control.message('job.released', 'job_c');
    expect(bench.backend.requests.length).toBe(0);
    expect(bench.link.slots.load()[0]?.in_flight).toBe(0);
  });
});

describe('refusals', () => {
  test.each([
    [4001, 'revoked'],
    [4002, 'superseded'],
    [4004, 'protocol'],
  ] as const)('close %i stops the daemon for good: %s', async (code, why) => {
    await bench.start();
    await bench.up();
    const { control } = bench;
    control.send({ type: 'error', code: 'revoked', message: 'by the operator' });
    control.socket?.close(code);
    await control.until(() => bench.posts('stopping').length === 1);
    bench.link.hear({ type: 'drain', deadline_ms: 0, reason: why });
    await control.until(() => bench.posts('stopped').length === 1);
    expect(bench.posts('stopped')[0]).toMatchObject({
      why,
      message: expect.stringContaining('by the operator') as string,
    });
    expect(control.connections).toBe(1);
  });

  test.each([
    ['when it is told that the stop is on disk', true],
    ['after a second without a word', false],
  ])('work is held when the link is refused for good, and let go %s', async (_when, told) => {
    const open = holdAnswers();
    await bench.start();
    await bench.up();
    const { control, backend, link } = bench;
    control.offer('job_a', { streaming: true });
    await control.until(() => open.length === 1);
    control.socket?.close(4001);
    await control.until(() => bench.posts('stopping').length === 1);
    expect(link.attempts.live).toBe(1);
    if (told) link.hear({ type: 'drain', deadline_ms: 0, reason: 'revoked' });
    const begun = performance.now();
    await control.until(() => backend.requests[0]?.aborted === true);
    if (told) expect(performance.now() - begun).toBeLessThan(900);
    else expect(performance.now() - begun).toBeGreaterThan(900);
    await control.until(() => bench.posts('stopped').length === 1);
    expect(bench.posts('stopped')).toMatchObject([{ why: 'revoked', released: 1 }]);
    expect(control.connections).toBe(1);
  });

  test('403 at the upgrade stops for good, unless something in between said it', async () => {
    bench.control.refuse = { status: 403, body: '<html>Blocked by your firewall</html>' };
    await bench.start();
    await bench.control.until(() => bench.posts('disconnected').length === 1);
    expect(bench.posts('disconnected')[0]!.retry_in_ms).toBeGreaterThanOrEqual(2500);
    bench.control.refuse = { status: 403, body: '{"error":{"code":"revoked","message":"Gone."}}' };
    await bench.control.until(() => bench.posts('stopped').length === 1);
    expect(bench.posts('stopped')[0]).toMatchObject({ why: 'revoked' });
  });

  test.each([401, 409])('%i is tried again at the slowest pace', async (status) => {
    bench.control.refuse = { status };
    await bench.start();
    await bench.control.until(() => bench.posts('disconnected').length === 1);
    expect(bench.posts('disconnected')[0]!.retry_in_ms).toBe(2500);
    expect(bench.posts('stopped')).toEqual([]);
  });

  test.each([1001, 1013, 4005, 4006])('close %i is followed by a new link', async (code) => {
    await bench.start();
    await bench.up();
    bench.control.socket?.close(code);
    await bench.up(2);
    expect(bench.control.connections).toBe(2);
  });

  test('dials that fail come further and further apart, also behind a link that fell at once', async () => {
    bench.control.refuse = { status: 503 };
    await bench.start(0.01);
    const waits = () => bench.posts('disconnected').map(({ retry_in_ms }) => retry_in_ms);
    await bench.control.until(() => waits().length === 4);
    bench.control.refuse = null;
    await bench.up();
    bench.control.socket?.terminate();
    await bench.up(2);
    expect(waits().slice(0, 4)).toEqual([10, 10, 20, 40]);
    expect(waits().at(-1)).toBe(50);
  });

  test('a message too large for the control plane is told as such, and tried again at the slowest pace', async () => {
    await bench.start();
    await bench.up();
    bench.control.socket?.close(1009);
    await bench.control.until(() => bench.posts('disconnected').length === 1);
    const { reason, retry_in_ms } = bench.posts('disconnected')[0]!;
    expect(reason).toContain('larger than the control plane takes');
    expect(retry_in_ms).toBe(2500);
  });
});

describe('several addresses', () => {
  /** It takes connections, and says nothing on them. */
  const silent = createServer(() => undefined);
  /** Nobody listens there. */
  let dead: string;
  beforeAll(async () => {
    const gone = createServer();
    for (const server of [silent, gone]) await once(server.listen(0, '127.0.0.1'), 'listening');
    dead = urlOf(gone);
    await once(gone.close(), 'close');
  });
  afterAll(() => silent.close());
  const urlOf = (server: Server) => `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const waits = () => bench.posts('disconnected').map(({ retry_in_ms }) => retry_in_ms);

  test('where one refuses, the next is dialled at once, and is named', async () => {
    let live = '';
    await bench.start(0.3, (data) => {
      live = data.control_url;
      return { ...data, control_url: `${dead},${live}` };
    });
    await bench.up();
    expect(bench.posts('connected')[0]!.url).toBe(live);
    bench.control.socket?.terminate();
    await bench.up(2);
    expect(waits()).toEqual([0, 300, 0]);
  });

  test('where all refuse, the pace slows down once a round', async () => {
    await bench.start(0.01, (data) => ({ ...data, control_url: [dead, dead, dead].join(',') }));
    await bench.control.until(() => waits().length === 12);
    expect(waits().slice(0, 12)).toEqual([0, 0, 10, 0, 0, 10, 0, 0, 20, 0, 0, 40]);
  });

  test('one that says nothing holds the others up for a second', async () => {
    const begun = performance.now();
    await bench.start(0, (data) => ({ ...data, control_url: `${urlOf(silent)},${data.control_url}` }));
    await bench.up();
    expect(performance.now() - begun).toBeGreaterThan(950);
    expect(performance.now() - begun).toBeLessThan(1800);
  });
});

describe('a rotated credential', () => {
  test('opens a new link at once, on which streams go on', async () => {
    const open = holdAnswers();
    await bench.start(0.99);
    await bench.up();
    const { control } = bench;
    const first = control.offer('job_a', { streaming: true });
    await control.until(() => open.length === 1);
    open[0]!.write(sse(delta('one')));
    await control.until(() => control.stream(first).length > 0);
    const second = control.newStream();
    control.verdicts = () => ({
      verdict: 'keep',
      stream: second,
      acked_offset: control.stream(first).length,
    });
    bench.link.hear({ type: 'credential', credential: 'fln_new' });
    await bench.up(2);
    expect(control.authorizations).toEqual(['Bearer fln_test', 'Bearer fln_new']);
    expect(bench.posts('disconnected')).toEqual([]);
    open[0]!.end(sse(delta('two', 'stop'), '[DONE]'));
    await control.message('job.completed', 'job_a');
    expect(control.all('job.released')).toEqual([]);
    expect(bench.backend.requests[0]?.aborted).toBe(false);
  });

  test('is tried at once where the link is down', async () => {
    bench.control.refuse = { status: 401 };
    await bench.start(0.99);
    await bench.control.until(() => bench.posts('disconnected').length === 1);
    bench.control.refuse = null;
    const begun = performance.now();
    bench.link.hear({ type: 'credential', credential: 'fln_new' });
    await bench.up();
    expect(performance.now() - begun).toBeLessThan(1000);
    expect(bench.control.connections).toBe(2);
  });
});

describe('slots', () => {
  test('an offer over the capacity is refused, and the next is taken the moment one is free', async () => {
    const open = holdAnswers();
    bench.slots = 2;
    await bench.start();
    await bench.up();
    const { control } = bench;
    for (const job of ['job_a', 'job_b', 'job_c']) control.offer(job, { streaming: true });
    expect(await control.message('job.rejected', 'job_c')).toMatchObject({ reason: 'no_slot' });
    await control.until(() => open.length === 2);
    expect(bench.link.slots.load()).toEqual([{ id: 'main', in_flight: 2, capacity: 2 }]);
    open[0]!.end(sse(delta('x', 'stop'), '[DONE]'));
    await control.message('job.completed');
    control.offer('job_d', { streaming: true });
    await control.until(() => open.length === 3);
  });

  test('an unknown backend or kind of work is refused with its reason', async () => {
    await bench.start();
    await bench.up();
    bench.control.offer('job_a', { backend: 'elsewhere' });
    bench.control.offer('job_b', { kind: 'agent' });
    bench.control.offer('job_c', { body_length: 1e9, without_body: true });
    expect(await bench.control.message('job.rejected', 'job_a')).toMatchObject({ reason: 'unknown_backend' });
    expect(await bench.control.message('job.rejected', 'job_b')).toMatchObject({
      reason: 'unsupported_kind',
    });
    expect(await bench.control.message('job.rejected', 'job_c')).toMatchObject({ reason: 'body_too_large' });
  });

  test('what it holds always fits into a registration: more is refused, and it comes back with all of it', async () => {
    bench.slots = 10_000;
    await bench.start();
    await bench.up();
    const { control } = bench;
    const job = (n: number) => `job_${String(n).padStart(26, '0')}`;
    for (let n = 0; n < 1500; n++) control.offer(job(n), { without_body: true });
    expect(await control.message('job.rejected')).toMatchObject({ reason: 'no_slot' });
    await control.until(
      () => control.all('job.accepted').length + control.all('job.rejected').length === 1500,
    );
    control.socket?.terminate();
    await bench.up(2);
    const { inventory } = control.registrations[1]!;
    expect(inventory).toHaveLength(control.all('job.accepted').length);
    expect(inventory.length).toBeGreaterThan(500);
    expect(Buffer.byteLength(JSON.stringify(control.registrations[1]))).toBeLessThan(MESSAGE_MAX_BYTES);
    expect(inventory[0]).toMatchObject({ backend: 'main', state: 'receiving' });
  });

  test('sixteen streams that fill the windows delay no beat', async () => {
    bench.slots = 16;
    bench.control.heartbeat_ms = 600;
    // The control plane takes what comes but acknowledges nothing of the link: the uplink is full.
    bench.control.ack_link = false;
    bench.backend.answer = ({ response }) => response.end(Buffer.alloc(1_000_000));
    await bench.start();
    await bench.up();
    const { control } = bench;
    for (let count = 0; count < 16; count++) control.offer(`job_${count}`);
    await control.until(() => bench.backend.requests.length === 16 && control.wire_bytes > 100_000);
    const before = control.all('node.heartbeat').length;
    await control.message('node.heartbeat', undefined, before + 3);
    expect(Math.max(...bench.posts('acked').map((acked) => acked.rtt_ms))).toBeLessThan(600);
    expect(control.wire_bytes).toBeLessThanOrEqual(256 * 1024);
    expect(bench.posts('disconnected')).toEqual([]);
    control.ack_link = true;
    control.send({ type: 'link.ack', received: control.wire_bytes });
    await control.until(
      () => control.all('job.completed').length === 16 || bench.posts('disconnected').length > 0,
    );
    expect(bench.posts('disconnected')).toEqual([]);
    const streams = [...control.streams.values()];
    expect(streams.map((stream) => [stream.length, stream.gaps])).toEqual(streams.map(() => [1_000_000, 0]));
  });
});

describe('a machine that has slept through its lease', () => {
  const detached = { owner: STORE_OWNER };

  test('begins no detached work that was offered before: another node may have it', async () => {
    bench.control.heartbeat_ms = 5000;
    await bench.start();
    await bench.up();
    const { control } = bench;
    bench.slept_ms = 60_000;
    control.offer('job_a', detached);
    expect(await control.message('job.rejected', 'job_a')).toMatchObject({ reason: 'no_lease' });
    control.offer('job_b');
    await control.message('job.completed', 'job_b');
    expect(bench.backend.requests).toHaveLength(1);
  });

  test('begins none whose request was on its way', async () => {
    bench.control.heartbeat_ms = 5000;
    await bench.start();
    await bench.up();
    const { control } = bench;
    const body = '{"model":"m"}';
    const stream = control.offer('job_a', { ...detached, body, without_body: true });
    await control.message('job.accepted', 'job_a');
    bench.slept_ms = 60_000;
    control.sendBody(stream, body);
    await control.until(() => bench.posts('fenced').length === 1);
    expect(bench.link.slots.load()[0]?.in_flight).toBe(0);
    expect(bench.backend.requests).toEqual([]);
  });
});

describe('without a link', () => {
  test('the node fences itself before its lease ends: it stops the work and forgets it', async () => {
    const open = holdAnswers();
    bench.control.heartbeat_ms = 200;
    await bench.start(0.99);
    await bench.up();
    const { control } = bench;
    control.offer('job_a', { streaming: true });
    await control.until(() => open.length === 1);
    control.ack_beats = false;
    control.answer_registration = false;
    const seen = control.all('node.heartbeat').length;
    await control.until(() => bench.posts('fenced').length === 1);
    expect(bench.posts('fenced')).toEqual([{ type: 'fenced', attempts: 1 }]);
    expect(control.all('node.heartbeat').length - seen).toBeLessThanOrEqual(2);
    await control.until(() => bench.backend.requests[0]?.aborted === true);
    control.ack_beats = true;
    control.answer_registration = true;
    control.socket?.terminate();
    await bench.up(2);
    expect(control.registrations.at(-1)?.inventory).toEqual([]);
    expect(bench.link.slots.load()[0]?.in_flight).toBe(0);
  });

  test('attached work is dropped after 6 s and told as released when a link comes', async () => {
    const open = holdAnswers();
    bench.control.heartbeat_ms = 5000;
    await bench.start();
    await bench.up();
    const { control } = bench;
    control.offer('job_a', { streaming: true });
    await control.until(() => open.length === 1);
    control.refuse = { status: 503 };
    const begun = performance.now();
    control.socket?.terminate();
    await control.until(() => bench.backend.requests[0]?.aborted === true);
    const held_ms = performance.now() - begun;
    expect(held_ms).toBeGreaterThan(5900);
    expect(held_ms).toBeLessThan(7000);
    control.refuse = null;
    await bench.up(2);
    expect(control.registrations.at(-1)?.inventory).toMatchObject([{ job: 'job_a', state: 'released' }]);
    expect(await control.message('job.released', 'job_a')).toMatchObject({ started: true });
    await control.until(() => bench.link.attempts.size === 0);
  });
});

describe('draining', () => {
  test('takes no more, finishes what runs, says goodbye and stops', async () => {
    const open = holdAnswers();
    await bench.start();
    await bench.up();
    const { control } = bench;
    control.offer('job_a', { streaming: true });
    await control.until(() => open.length === 1);
    bench.link.hear({ type: 'drain', deadline_ms: 10_000, reason: 'updating' });
    expect(await control.message('node.heartbeat')).toMatchObject({ draining: true });
    control.offer('job_b');
    expect(await control.message('job.rejected', 'job_b')).toMatchObject({ reason: 'draining' });
    expect(bench.posts('stopped')).toEqual([]);
    open[0]!.end(sse(delta('x', 'stop'), '[DONE]'));
    await control.until(() => bench.posts('stopped').length === 1);
    expect(control.all('job.completed', 'job_a').length).toBe(1);
    expect(control.all('node.deregister')).toMatchObject([{ reason: 'updating' }]);
    expect(bench.posts('stopped')).toMatchObject([{ why: 'drained', message: 'updating', released: 0 }]);
  });

  test('releases at its deadline what has not finished', async () => {
    const open = holdAnswers();
    await bench.start();
    await bench.up();
    const { control } = bench;
    control.offer('job_a', { streaming: true });
    await control.until(() => open.length === 1);
    bench.link.hear({ type: 'drain', deadline_ms: 20, reason: 'now' });
    await control.until(() => bench.posts('stopped').length === 1);
    expect(bench.posts('stopped')).toMatchObject([{ why: 'drained', released: 1 }]);
    expect(control.all('job.released', 'job_a').length).toBe(1);
    expect(control.log.at(-1)?.type).toBe('node.deregister');
    await control.until(() => bench.backend.requests[0]?.aborted === true);
  });
});
