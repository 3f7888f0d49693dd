import {
  type ControlMessageOf,
  END_OUTCOME,
  FRAME_KIND,
  type JobView,
  MESSAGE_MAX_BYTES,
  type NodeView,
} from '@flotilla/protocol';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { rawHttp } from '../support/raw-http.ts';
import { type RawLink, enrolRawNode, rawRegistration } from '../support/raw-node.ts';
import { until } from '../support/until.ts';
import { type World, openWorld } from '../support/world.ts';

/** What a node of another make, or of another version, may say on its link, and what becomes of it. */
let world: World;
const QUEUE_TIMEOUT_MS = 2000;

beforeAll(async () => {
  world = await openWorld({ env: { FLOTILLA_QUEUE_TIMEOUT_MS: String(QUEUE_TIMEOUT_MS) } });
}, 60_000);
afterAll(() => world.close());

describe('a node of another make', () => {
  it('may send messages of types to come by the hundred: each is answered, and the link lives on', async () => {
    const node = await enrolRawNode(world, 'newer');
    const link = await node.join();
    for (let n = 0; n < 300; n++) link.send({ type: 'node.mood', id: `m${n}` });
    const answered = () => link.heard.filter((message) => message.type === 'error');
    await until('each is answered', () => answered().length === 300);
    expect(answered()[0]).toMatchObject({ id: 'm0', code: 'invalid_request' });
    const ack = link.next('node.heartbeat.ack');
    link.beat();
    await ack;
    link.close();
  });

  it('whose count of its work differs is asked for it, and the difference is told', async () => {
    const node = await enrolRawNode(world, 'miscounting');
    const link = await node.join();
    const differences = async () => {
      const metrics = await fetch(`${world.plane.url}/metrics`).then((reply) => reply.text());
      return Number(/^flotilla_count_differences_total (\d+)$/m.exec(metrics)?.[1]);
    };
    const report = async (inventory: object[]) => {
      const asked = link.next('node.heartbeat.ack', ({ want }) => want.includes('inventory'));
      for (let beat = 0; beat < 2; beat++) link.beat({ leases_digest: 'another' });
      await asked;
      const verdicts = link.next('inventory.verdicts');
      link.send({ type: 'inventory.sync', inventory });
      return verdicts;
    };
    const item = { job: 'job_of_nobody', attempt: 1 };
    expect(await report([{ ...item, state: 'finished' }])).toMatchObject({
      verdicts: [{ verdict: 'abandon' }],
    });
    expect(await differences()).toBe(0);
    expect(await report([{ ...item, state: 'running' }])).toMatchObject({
      verdicts: [{ verdict: 'abandon' }],
    });
    expect(await differences()).toBe(1);
    link.close();
  });

  it('is cut off for what is broken by the hundred', async () => {
    const node = await enrolRawNode(world, 'broken');
    const link = await node.join();
    for (let n = 0; n < 300; n++) link.send('not json');
    expect(await link.closed).toMatchObject({ code: 4005 });
  });

  it('that says too much at once is closed with 1009, and its view tells why', async () => {
    const node = await enrolRawNode(world, 'wordy');
    const link = await node.join();
    link.send(JSON.stringify({ type: 'job.progress', text: 'x'.repeat(MESSAGE_MAX_BYTES) }));
    expect(await link.closed).toMatchObject({ code: 1009 });
    const { why } = await world.plane.get<{ why: { close_reason: string } }>(`/api/v1/nodes/${node.id}`);
    expect(why.close_reason).toMatch(/payload/i);
  });

  it('that can never take a job is not asked again: another gets it, and with none left the client is told at once', async () => {
    const [small, large] = await Promise.all(['small', 'large'].map((name) => enrolRawNode(world, name)));
    const link = await small!.join(serving('small', 'shared', 4));
    link.beats(300);
    const offer = link.next('job.offer');
    const answer = world.plane.chat({ model: 'shared', messages: [] });
    const { job, attempt } = await offer;
    const other = await large!.join(serving('large', 'shared', 4));
    other.beats(300);
    const moved = other.next('job.offer');
    link.send({ type: 'job.rejected', job, attempt, reason: 'body_too_large' });
    const second = await moved;
    expect(second.job).toBe(job);
    const sent_ms = performance.now();
    other.send({ type: 'job.rejected', job, attempt: second.attempt, reason: 'body_too_large' });
    const reply = await answer;
    const { error } = (await reply.json()) as { error: { code: string; message: string } };
    expect(performance.now() - sent_ms).toBeLessThan(1000);
    expect([reply.status, error.code]).toEqual([503, 'no_capacity']);
    expect(error.message).toContain('cannot take this request');
    link.close();
    other.close();
  });

  it('whose credential is wrong waits longer for each refusal, and is counted; a right one does not wait', async () => {
    const upgrade =
      'GET /node/v1/link HTTP/1.1\r\nhost: x\r\nauthorization: Bearer fln_wrong\r\nconnection: upgrade\r\n' +
      'upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n';
    const times: number[] = [];
    for (let n = 0; n < 4; n++) {
      const began_ms = performance.now();
      expect(await rawHttp(world.plane.port, upgrade)).toMatchObject({ status: 401 });
      times.push(performance.now() - began_ms);
    }
    expect(times[3]).toBeGreaterThan(250);
    const node = await enrolRawNode(world, 'right');
    const began_ms = performance.now();
    const link = await node.join();
    // A fifth wrong one would have waited 400 ms.
    expect(performance.now() - began_ms).toBeLessThan(400);
    link.close();
    const metrics = await fetch(`${world.plane.url}/metrics`).then((reply) => reply.text());
    expect(metrics).toMatch(/^flotilla_\w+\{.*surface="link".*\} 4$/m);
  });
});

describe('a node that comes back', () => {
  it('after another process of it has come is told to stop for good, whenever that is', async () => {
    const node = await enrolRawNode(world, 'twice');
    const first = await node.join({ boot_id: 'boot-old' });
    first.close();
    const second = await node.join({ boot_id: 'boot-new' });
    second.close();
    const third = await node.join({ boot_id: 'boot-newest' });
    third.close();
    const late = await node.dial();
    late.send(rawRegistration('twice', { boot_id: 'boot-old' }));
    expect(await late.closed).toMatchObject({ code: 4002 });
    const again = await node.join({ boot_id: 'boot-newest' });
    again.close();
  });

  it('with work whose start was never heard of keeps it, and the start is known', async () => {
    const { link, offer, answer, node } = await offered('restarted');
    link.close();
    const again = await node.dial();
    const registered = again.next('node.registered');
    const item = { job: offer.job, attempt: offer.attempt, state: 'running', body_offset: offer.body_length };
    again.send(rawRegistration('restarted', { inventory: [item] }));
    const { verdicts } = await registered;
    expect(verdicts).toMatchObject([{ job: offer.job, verdict: 'keep', acked_offset: 0 }]);
    const { attempts } = await world.plane.get<JobView>(`/api/v1/jobs/${offer.job}`);
    expect(attempts).toMatchObject([{ attempt: 1, started_at: expect.any(String) }]);
    again.send({
      type: 'job.failed',
      ...fence(offer),
      code: 'invalid_request',
      message: 'no',
      retryable: false,
    });
    expect((await answer).status).toBe(400);
    again.close();
  });

  it('with more of a request than there is has the attempt taken from it, and the job is offered anew', async () => {
    const { link, offer, answer, node } = await offered('confused');
    link.close();
    const again = await node.dial();
    const registered = again.next('node.registered');
    const next = again.next('job.offer');
    const item = { job: offer.job, attempt: offer.attempt, state: 'receiving', body_offset: 1e9 };
    again.send(rawRegistration('confused', { inventory: [item] }));
    expect((await registered).verdicts).toMatchObject([{ job: offer.job, verdict: 'abandon' }]);
    again.send({ type: 'job.released', ...fence(offer), started: false });
    const second = await next;
    expect([second.job, second.attempt]).toEqual([offer.job, 2]);
    again.send({
      type: 'job.failed',
      ...fence(second),
      code: 'invalid_request',
      message: 'no',
      retryable: false,
    });
    expect((await answer).status).toBe(400);
    again.close();
  });
});

describe('a job that waits for a full node', () => {
  it('goes back to the one that failed it when the full one is gone for good', async () => {
    const [first, second] = await Promise.all(['first', 'second'].map((name) => enrolRawNode(world, name)));
    const failing = await first!.join(serving('first', 'pair', 1));
    failing.beats(300);
    const offer = failing.next('job.offer');
    const answer = world.plane.chat({ model: 'pair', messages: [] });
    const attempt = await offer;
    const full = await second!.join(serving('second', 'pair', 1));
    full.beats(300);
    // The other's only slot is taken before the first node fails.
    const taken = full.next('job.offer');
    const other = world.plane.chat({ model: 'pair', messages: [] });
    const held = await taken;
    full.send({ type: 'job.started', ...fence(held) });
    failing.send({
      type: 'job.failed',
      ...fence(attempt),
      code: 'backend_error',
      message: 'ill',
      retryable: true,
    });
    const queued = await until('it waits for the full node', async () => {
      const job = await world.plane.get<JobView>(`/api/v1/jobs/${attempt.job}`);
      return job.state === 'queued' ? job : undefined;
    });
    expect(queued.attempts).toMatchObject([{ node: expect.any(String), outcome: 'backend_error' }]);
    const back = failing.next('job.offer');
    await world.plane.send('POST', `/api/v1/nodes/${second!.id}/cordon`);
    expect((await back).job).toBe(attempt.job);
    for (const link of [failing, full]) link.close();
    await Promise.all([answer, other]);
  });
});

describe('a node that has taken a job', () => {
  it('may receive its request for longer than a job may wait in the queue', async () => {
    const { link, offer, answer } = await offered('uphill');
    link.beats(300);
    link.send({ type: 'job.accepted', ...fence(offer) });
    const accepted_ms = performance.now();
    await until('the queue deadline is over', () => performance.now() - accepted_ms > QUEUE_TIMEOUT_MS + 500);
    completeJob(link, offer, '{"late":true}');
    expect(await (await answer).json()).toEqual({ late: true });
    link.close();
  });
});

describe('a detached job that a node has failed', () => {
  it('goes to another node at once, however busy that is', async () => {
    const [first, second] = await Promise.all(['fickle', 'busy'].map((name) => enrolRawNode(world, name)));
    const failing = await first!.join(serving('fickle', 'shared', 8));
    failing.beats(300);
    const offer = failing.next('job.offer');
    const body = { model: 'shared', request: { messages: [] } };
    const { id } = await world.plane.send<{ id: string }>('POST', '/api/v1/jobs', body);
    const attempt = await offer;
    failing.send({ type: 'job.started', ...fence(attempt) });

    const other = await second!.join({
      descriptor: {
        name: 'busy',
        pools: [{ id: 'pool', capacity: 2, capacity_from: 'config' }],
        backends: [
          { id: 'backend', kind: 'raw', pool: 'pool', models: [{ id: 'shared' }, { id: 'its-own' }] },
        ],
      },
    });
    other.beats(300);
    // By its load and its record the node that failed the job would be the better place.
    const taken = other.next('job.offer');
    const beside = world.plane.chat({ model: 'its-own', messages: [] });
    const held = await taken;
    const again = other.next('job.offer', ({ job }) => job === id);
    failing.send({
      type: 'job.failed',
      ...fence(attempt),
      code: 'backend_error',
      message: 'ill',
      retryable: true,
    });
    completeJob(other, await again, '{"choices":[]}');
    const job = await until('it has ended', async () => {
      const view = await world.plane.get<JobView>(`/api/v1/jobs/${id}`);
      return view.finished_at !== null && view;
    });
    expect(job.attempts).toMatchObject([
      { node: first!.id, outcome: 'backend_error' },
      { node: second!.id, outcome: 'succeeded' },
    ]);
    completeJob(other, held, '{}');
    await beside;
    for (const link of [failing, other]) link.close();
  });
});

describe('a detached job that its node says it has finished', () => {
  it('is not waited for beyond its deadline for longer than a lease lasts', async () => {
    const node = await enrolRawNode(world, 'returning');
    const link = await node.join();
    link.beats(100);
    const offered = link.next('job.offer');
    const body = { model: 'returning', request: { messages: [] }, run_timeout_ms: 3000 };
    const { id } = await world.plane.send<{ id: string }>('POST', '/api/v1/jobs', body);
    const attempt = fence(await offered);
    link.send({ type: 'job.started', ...attempt });
    const show = () => world.plane.get<JobView>(`/api/v1/jobs/${id}`);
    await until('it runs', async () => (await show()).state === 'running');
    link.close();
    const back = await node.dial();
    const registered = back.next('node.registered');
    const item = { ...attempt, owner: 'store', backend: 'backend', state: 'finished', body_offset: 0 };
    back.send(rawRegistration('returning', { inventory: [{ ...item, stream_offset: 2 }] }));
    back.beats(100);
    expect((await registered).verdicts).toMatchObject([{ verdict: 'keep' }]);
    const job = await until('it has ended', async () => {
      const view = await show();
      return view.finished_at !== null && view;
    });
    expect(job).toMatchObject({ state: 'timed_out', error: { code: 'run_timeout' } });
    back.close();
  });
});

describe('detached work of a node that falls silent with most of the fleet', () => {
  it('is held back until fewer are silent, and then given to another', async () => {
    // Those that other tests left behind are silent, too.
    for (const node of await world.nodes())
      await until(`${node.name} is gone`, () =>
        world.plane.send('DELETE', `/api/v1/nodes/${node.id}`).then(
          () => true,
          () => false,
        ),
      );
    const names = Array.from({ length: 9 }, (_, place) => `crowd-${place}`);
    const nodes = await Promise.all(names.map((name) => enrolRawNode(world, name)));
    const join = async (place: number, model: string) => {
      const link = await nodes[place]!.join(serving(names[place]!, model, 4));
      link.beats(300);
      return link;
    };
    const submit = () =>
      world.plane.send<{ id: string }>('POST', '/api/v1/jobs', {
        model: 'crowded',
        request: { messages: [] },
      });
    const [holder, ...silent] = await Promise.all(
      names.slice(0, 7).map((_, place) => join(place, place === 0 ? 'crowded' : 'else')),
    );
    const offer = holder!.next('job.offer');
    const { id } = await submit();
    const attempt = await offer;
    holder!.send({ type: 'job.accepted', ...fence(attempt) });
    holder!.send({ type: 'job.started', ...fence(attempt) });
    const show = () => world.plane.get<JobView>(`/api/v1/jobs/${id}`);
    await until('it runs', async () => (await show()).state === 'running');
    const [other] = await Promise.all([join(7, 'crowded'), join(8, 'else')]);

    for (const link of [holder!, ...silent]) link.close();
    const view = () => world.plane.get<NodeView>(`/api/v1/nodes/${nodes[0]!.id}`);
    const offline = await until('its lease is over', async () => {
      const node = await view();
      return node.state === 'offline' && node;
    });
    expect(offline.why.alarms.join()).toContain('held back');
    // What is submitted later is served: the other has a place, and would have had the held one first.
    const later = other!.next('job.offer');
    const { id: second } = await submit();
    expect((await later).job).toBe(second);
    expect(await show()).toMatchObject({
      state: 'running',
      attempts: [{ node: nodes[0]!.id, outcome: 'open' }],
    });

    const again = other!.next('job.offer', ({ job }) => job === id);
    const back = await Promise.all([1, 2, 3].map((place) => join(place, 'else')));
    expect((await again).attempt).toBe(2);
    expect((await show()).attempts[0]).toMatchObject({ node: nodes[0]!.id, outcome: 'node_lost' });
    for (const link of [other!, ...back]) link.close();
  });
});

describe('a request that nobody can serve', () => {
  it('costs its key nothing, and says so', async () => {
    const node = await enrolRawNode(world, 'shut');
    const link = await node.join();
    await world.plane.send('POST', `/api/v1/nodes/${node.id}/cordon`);
    const { key } = await world.plane.send<{ key: string }>('POST', '/api/v1/keys', {
      name: 'paced',
      requests_per_minute: 2,
    });
    for (let n = 0; n < 4; n++) {
      const reply = await world.plane.chat({ model: 'shut', messages: [] }, { key });
      expect(reply.status).toBe(503);
      expect(reply.headers.get('x-ratelimit-remaining-requests')).toBe('2');
      expect(reply.headers.get('x-flotilla-attempts')).toBe('0');
      await reply.text();
    }
    link.close();
  });
});

describe('a job that a node has failed', () => {
  it('waits for another slot no longer than the queue deadline says, however long it had run', async () => {
    const { link, offer, answer } = await offered('single', 1);
    link.beats(300);
    link.send({ type: 'job.started', ...fence(offer) });
    // Whoever waits takes the slot that the failure leaves.
    const next = link.next('job.offer');
    const other = world.plane.chat({ model: 'single', messages: [] });
    await until('the other waits', async () => {
      const { data } = await world.plane.get<{ data: JobView[] }>('/api/v1/jobs?state=queued');
      return data.length === 1;
    });
    link.send({
      type: 'job.failed',
      ...fence(offer),
      code: 'backend_error',
      message: 'ill',
      retryable: true,
    });
    const failed_ms = performance.now();
    link.send({ type: 'job.started', ...fence(await next) });
    const reply = await answer;
    expect(reply.status).toBe(504);
    expect(await reply.json()).toMatchObject({ error: { code: 'queue_timeout' } });
    expect(performance.now() - failed_ms).toBeGreaterThan(QUEUE_TIMEOUT_MS - 100);
    link.close();
    await other;
  });

  it('that every node has failed is given to the free one, not kept for the full one', async () => {
    const [first, second] = await Promise.all(['uno', 'due'].map((name) => enrolRawNode(world, name)));
    const a = await first!.join(serving('uno', 'duo', 1));
    a.beats(300);
    const offer = a.next('job.offer');
    const answer = world.plane.chat({ model: 'duo', messages: [] });
    const one = await offer;
    const b = await second!.join(serving('due', 'duo', 1));
    b.beats(300);
    const moved = b.next('job.offer');
    a.send({ type: 'job.failed', ...fence(one), code: 'backend_error', message: 'ill', retryable: true });
    const two = await moved;
    // The first node is taken by another job; then the second fails this one too.
    const taken = a.next('job.offer');
    const other = world.plane.chat({ model: 'duo', messages: [] });
    a.send({ type: 'job.started', ...fence(await taken) });
    const again = b.next('job.offer');
    b.send({ type: 'job.failed', ...fence(two), code: 'backend_error', message: 'ill', retryable: true });
    expect(await again).toMatchObject({ job: one.job, attempt: 3 });
    for (const link of [a, b]) link.close();
    await Promise.all([answer, other]);
  });

  it('takes no result of its old attempt: that is stale, and the node is told to let go', async () => {
    const [slow, quick] = await Promise.all(['slow', 'quick'].map((name) => enrolRawNode(world, name)));
    const a = await slow!.join(serving('slow', 'late', 1));
    a.beats(300);
    const offer = a.next('job.offer');
    const answer = world.plane.chat({ model: 'late', messages: [] });
    const first = await offer;
    const b = await quick!.join(serving('quick', 'late', 1));
    b.beats(300);
    // The offer is not answered: it is withdrawn, and the job goes to the other node.
    const abandoned = a.next('job.abandon');
    const second = await b.next('job.offer');
    expect(second).toMatchObject({ job: first.job, attempt: 2 });
    expect(await abandoned).toMatchObject(fence(first));
    const verdict = a.next('result.ack');
    completeJob(a, first, '{"from":"the old one"}');
    expect(await verdict).toMatchObject({ ...fence(first), outcome: 'stale' });
    completeJob(b, second, '{"from":"the new one"}');
    expect(await (await answer).json()).toEqual({ from: 'the new one' });
    const row = await usageOf(first.job);
    expect(row).toMatchObject({ outcome: 'succeeded', attempts: 2, node: quick!.id });
    for (const link of [a, b]) link.close();
  });
});

/** What a node says of itself that serves one model with so many slots. */
function serving(name: string, model: string, capacity: number) {
  return {
    descriptor: {
      name,
      pools: [{ id: 'pool', capacity, capacity_from: 'config' }],
      backends: [{ id: 'backend', kind: 'raw', pool: 'pool', models: [{ id: model }] }],
    },
  };
}

function completeJob(link: RawLink, offer: ControlMessageOf<'job.offer'>, body: string): void {
  const head = JSON.stringify({ status: 200, headers: [['content-type', 'application/json']] });
  link.send({ type: 'job.started', ...fence(offer) });
  link.frame(FRAME_KIND.responseHead, offer.stream, 0, head);
  link.frame(FRAME_KIND.responseBody, offer.stream, 0, body);
  link.frame(FRAME_KIND.end, offer.stream, body.length, Buffer.from([END_OUTCOME.complete]));
  const usage = { prompt_tokens: 1, completion_tokens: 1, estimated: false };
  link.send({ type: 'job.completed', ...fence(offer), result: { status: 200, length: body.length }, usage });
}

const usageOf = (job: string) =>
  until('it has its row', async () => {
    const { data } = await world.plane.get<{ data: { job: string }[] }>('/api/v1/usage');
    return data.find((row) => row.job === job);
  });

const fence = ({ job, attempt }: { job: string; attempt: number }) => ({ job, attempt });

/** A node of which a client's request has been asked, and that has said nothing of it yet. */
async function offered(name: string, capacity = 64) {
  const node = await enrolRawNode(world, name);
  const link = await node.join(serving(name, name, capacity));
  const offer = link.next('job.offer');
  const answer = world.plane.chat({ model: name, messages: [] });
  return { node, link, offer: await offer, answer };
}
