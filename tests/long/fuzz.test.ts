import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type ControlMessageOf, encodeFrame, FRAME_KIND } from '@flotilla/protocol';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { type Bystander, startBystander } from '../support/bystander.ts';
import { createMutator } from '../support/mutate.ts';
import { flotilla } from '../support/program.ts';
import { enrolRawNode, type RawLink, rawRegistration } from '../support/raw-node.ts';
import { chatAnswer } from '../support/scripted-backend.ts';
import { jobOffer, type PlaneLink, startScriptedPlane } from '../support/scripted-plane.ts';
import { until } from '../support/until.ts';
import { type World, openWorld } from '../support/world.ts';

/** Broken frames by the thousand, the same ones each time, in both directions of the node link. */
let world: World;
let bystander: Bystander;
const FRAMES = 20_000;
const ROUND = 100;
const MEMORY_MOST_BYTES = 256 * 1024 * 1024;

beforeAll(async () => {
  world = await openWorld();
  bystander = await startBystander(world);
}, 60_000);
afterAll(() => world.close());

it('from a node: no crash, no memory kept, everybody else served', async () => {
  const random = createMutator(20_261_122);
  const node = await enrolRawNode(world, 'fuzz');
  const key = await world.key({ node_labels: { raw: 'fuzz' } });
  const { pid } = world.plane.program();
  const before = await memory();
  let over = false;
  // Work for it, so that there are jobs and streams to speak of, and work for the innocent beside it.
  const clients = Array.from({ length: 4 }, async () => {
    while (!over) {
      const body = { model: 'fuzz', stream: random.below(2) === 1 };
      const reply = await world.plane
        .chat(body, { key, signal: AbortSignal.timeout(1000) })
        .catch(() => null);
      await reply?.text().catch(() => undefined);
    }
  });
  let served = 0;
  const others = (async () => {
    for (; !over; served++) await (await bystander.stream()).end();
  })();

  let links = 0;
  let link: RawLink | undefined;
  for (let sent = 0; sent < FRAMES; ) {
    if (link === undefined || link.ws.readyState !== link.ws.OPEN) {
      link = await node.join();
      links++;
    }
    const { ws, heard } = link;
    const offer = heard.findLast((message) => message.type === 'job.offer');
    for (let index = 0; index < ROUND; index++, sent++) {
      if (random.below(3) === 0) ws.send(random.bytes(random.pick(framesOf(offer?.stream ?? 1))));
      else ws.send(random.text(random.pick(nodeMessages(offer))));
    }
    // What was sent has been read once this beat is answered, or the link closed because of it.
    const seq = 1_000_000 + sent;
    link.beat({ seq });
    await until('the round is over', () => {
      const acknowledged = heard.some((one) => one.type === 'node.heartbeat.ack' && one.seq === seq);
      return acknowledged || ws.readyState !== ws.OPEN;
    });
  }
  over = true;
  link?.close();
  await Promise.all([...clients, others]);
  expect(links).toBeGreaterThan(10);
  expect(served).toBeGreaterThan(10);
  expect((await memory()) - before).toBeLessThan(MEMORY_MOST_BYTES);
  expect(world.plane.program().pid).toBe(pid);
  expect(world.plane.output()).not.toMatch(/fault of ours|unhandled|uncaught/i);
}, 120_000);

it('from a control plane: the daemon lives, and works when its control plane is sound again', async () => {
  const random = createMutator(20_261_123);
  const control = await startScriptedPlane();
  const backend = await world.backend((_request, response) => {
    response.setHeader('content-type', 'application/json');
    response.end(chatAnswer('sound'));
  });
  const { program: daemon, state_dir } = await startDaemon(control.url, backend.url);
  try {
    let link = await control.registered(0);
    for (let sent = 0; sent < FRAMES; ) {
      if (link.ws.readyState !== link.ws.OPEN) link = await control.registered(link.number + 1);
      const { ws } = link;
      link.offer(`sound-${sent}`, { model: 'scripted', messages: [] });
      for (let index = 0; index < ROUND; index++, sent++) {
        if (random.below(3) === 0) ws.send(random.bytes(random.pick(framesOf(random.below(64)))));
        else ws.send(random.text(random.pick(controlMessages(link, random.below(64)))));
      }
      const job = `read-up-to-${sent}`;
      ws.send(JSON.stringify({ type: 'job.cancel', job, attempt: 1 }));
      await until('the round is over', () => link.released.has(job) || ws.readyState !== ws.OPEN);
    }
    expect(daemon.child.exitCode).toBeNull();
    expect(backend.requests.length).toBeGreaterThan(10);
    // What the noise has left on the node is abandoned with the next registration.
    link.ws.terminate();
    link = await control.registered(link.number + 1);
    expect(await link.ask('last', { model: 'scripted', messages: [] })).toContain('sound');
    const { url } = JSON.parse(await readFile(join(state_dir, 'status.json'), 'utf8')) as { url: string };
    const status = (await (await fetch(`${url}/status`)).json()) as Record<string, unknown>;
    expect(status).toMatchObject({ status: 'running', pid: daemon.pid, link: { restarts: 0 } });
    expect(daemon.output()).not.toMatch(/crashed|unhandled|uncaught/i);
  } finally {
    await daemon.stop();
    await control.close();
  }
}, 120_000);

async function memory(): Promise<number> {
  const text = await (await fetch(`${world.plane.url}/metrics`)).text();
  return Number(/^flotilla_process_resident_memory_bytes (\S+)$/m.exec(text)![1]);
}

it.each([1e-9, 1e15])('a heartbeat of %d ms is refused by the daemon, which lives', async (heartbeat_ms) => {
  const control = await startScriptedPlane(heartbeat_ms);
  const daemon = await startDaemon(control.url, world.plane.url);
  try {
    const { heard } = await control.registered(0);
    const error = await until('it refuses', () => heard.find((message) => message.type === 'error'));
    expect(error.message).toContain('heartbeat_ms');
    expect(daemon.program.child.exitCode).toBeNull();
  } finally {
    // A registration that nobody answers is waited for; there is nothing here to stop in good order.
    daemon.program.signal('SIGKILL');
    await daemon.program.ended;
    await control.close();
  }
});

/** A daemon that takes what stands at this address for its control plane. */
async function startDaemon(control_url: string, backend_url: string) {
  const state_dir = join(world.dir, `fuzzed-${new URL(control_url).port}`);
  await mkdir(state_dir);
  const settings = { find_backends: false, backends: [{ url: backend_url, slots: 64, probe: 'list' }] };
  await writeFile(join(state_dir, 'node.yaml'), JSON.stringify(settings));
  const program = flotilla(['join', control_url, '--token', 'fle_scripted', '--state-dir', state_dir], {
    FLOTILLA_NODE_STATUS_PORT: '0',
  });
  return { program, state_dir };
}

function framesOf(stream: number): Buffer[] {
  const head = Buffer.from(JSON.stringify({ status: 200, headers: { 'content-type': 'text/event-stream' } }));
  const { requestBody, responseHead, responseBody, end, terminal } = FRAME_KIND;
  return [
    encodeFrame(responseHead, stream, 0, head),
    encodeFrame(responseBody, stream, 0, Buffer.from('data: {"choices":[]}\n\n')),
    encodeFrame(responseBody, stream, 22, Buffer.alloc(20_000, 'data: x\n\n')),
    encodeFrame(requestBody, stream, 0, Buffer.from('{"model":"scripted","messages":[]}')),
    encodeFrame(end, stream, 22, Buffer.of(0)),
    encodeFrame(terminal, stream, 0, Buffer.alloc(10)),
  ].map((frame) => Buffer.from(frame));
}

function nodeMessages(offer: ControlMessageOf<'job.offer'> | undefined): object[] {
  const fence = { job: offer?.job ?? 'job_unknown', attempt: offer?.attempt ?? 1 };
  const usage = { prompt_tokens: 1, completion_tokens: 2, cached_tokens: 0, estimated: false };
  const { descriptor } = rawRegistration('fuzz');
  return [
    rawRegistration('fuzz'),
    {
      type: 'node.heartbeat',
      seq: 5,
      descriptor_hash: 'h1',
      pools: [{ id: 'pool', in_flight: 1, capacity: 64 }],
      leases_digest: '1-00',
      backends: [{ id: 'backend', health: 'healthy', models: [{ id: 'fuzz', health: 'healthy' }] }],
      host: { cpus: 2 },
      progress_seq: 7,
      draining: false,
      rtt_ms: 3,
    },
    { type: 'descriptor.update', descriptor, descriptor_hash: 'h1' },
    { type: 'inventory.sync', inventory: [{ ...fence, state: 'running', body_offset: 3, stream_offset: 0 }] },
    { type: 'job.accepted', ...fence },
    { type: 'job.rejected', ...fence, reason: 'no_slot' },
    { type: 'job.started', ...fence },
    { type: 'job.progress', ...fence, progress: { done: 1 } },
    { type: 'job.completed', ...fence, result: { status: 200, length: 22 }, usage, total_ms: 3 },
    { type: 'job.failed', ...fence, code: 'backend_error', message: 'it broke', retryable: true, usage },
    { type: 'job.released', ...fence, started: true, usage },
    { type: 'stream.credit', stream: offer?.stream ?? 1, acked_offset: 10 },
    { type: 'link.ack', received: 65_536 },
    { type: 'error', code: 'internal', message: 'noise' },
  ];
}

function controlMessages({ backend }: PlaneLink, stream: number): object[] {
  const fence = { job: `job-${stream}`, attempt: 1 };
  const server_time = '2026-01-01T00:00:00Z';
  return [
    jobOffer(fence.job, stream, backend, 34),
    {
      type: 'node.heartbeat.ack',
      seq: 1,
      server_time,
      epoch: 1,
      desired: { cordoned: false },
      want: ['inventory'],
    },
    { type: 'inventory.verdicts', verdicts: [{ ...fence, verdict: 'keep', stream, acked_offset: 0 }] },
    { type: 'job.cancel', ...fence },
    { type: 'job.abandon', ...fence, reason: 'noise' },
    { type: 'result.ack', ...fence, outcome: 'accepted' },
    { type: 'stream.credit', stream, acked_offset: 10 },
    { type: 'link.ack', received: 65_536 },
    { type: 'error', code: 'internal', message: 'noise' },
  ];
}
