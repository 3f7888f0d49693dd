import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ACK_EVERY_BYTES } from '@flotilla/core';
import {
  type ControlMessageOf,
  END_OUTCOME,
  FRAME_HEADER_BYTES,
  FRAME_KIND,
  FRAME_PAYLOAD_MAX_BYTES,
} from '@flotilla/protocol';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Costs } from '../support/count-costs.ts';
import { flotilla } from '../support/program.ts';
import { type RawLink, enrolRawNode } from '../support/raw-node.ts';
import { chatAnswer, startScriptedBackend } from '../support/scripted-backend.ts';
import { testServer } from '../support/store.ts';
import { startScriptedPlane } from '../support/scripted-plane.ts';
import { until } from '../support/until.ts';
import { type World, openWorld } from '../support/world.ts';

/** What a request and a beat may cost, counted where it is spent: no busy machine makes it more. */
const COUNTING = fileURLToPath(new URL('../support/count-costs.ts', import.meta.url));
const HEARTBEAT_MS = 2000;
const REQUESTS = 20;
const TOGETHER = 50;
const NODES = 10;
const BEATS = 500;
/** What the control plane does by time, however much or little is asked of it. */
const BY_TIME =
  /^(config-version|bump-replica|list-replicas|moved-nodes|touch-keys|next-due|(expire|ready|held|open|erase|sweep|fold|trim|upkeep)-|vacuum|checkpoint)/;

describe('what a control plane spends', () => {
  let world: World;
  let link: RawLink;
  /** Each offer is somebody's, of those that ask at once as well. */
  const taken = new Set<string>();

  beforeAll(async () => {
    world = await openWorld({
      heartbeat_ms: HEARTBEAT_MS,
      node_options: ['--liftoff-only', '--import', COUNTING],
    });
    link = await joined('raw');
    link.beats(HEARTBEAT_MS / 4);
    await until('the model is there', async () => {
      const { data } = await world.plane.get<{ data: unknown[] }>('/v1/models');
      return data.length > 0;
    });
    await answered(await asked('Hello'));
    await costs();
  });
  afterAll(() => world.close());

  test('a request reads nothing from the store, and writes one statement', async () => {
    for (let n = 0; n < REQUESTS; n++) await answered(await asked('Hello'));
    expect(beyondTime(await costs())).toEqual({ settle: REQUESTS });
  });

  test('requests that end together share their statements', async () => {
    const open = await Promise.all(Array.from({ length: TOGETHER }, () => asked('Hello')));
    await costs();
    await Promise.all(open.map((one) => answered(one)));
    const { settle, ...others } = beyondTime(await costs());
    expect(settle).toBeLessThan(TOGETHER / 4);
    // Who was open for a second has a row before its end.
    expect(Object.keys(others).filter((name) => name !== 'record-open')).toEqual([]);
  });

  test('a detached job is accepted, claimed and ended with a statement each, and begun with no other', async () => {
    for (let n = 0; n < REQUESTS; n++) await detached(1);
    expect(beyondTime(await costs())).toEqual({
      'accept-jobs': REQUESTS,
      'claim-jobs': REQUESTS,
      'finish-jobs': REQUESTS,
    });
  });

  test('detached jobs of one batch share their statements', async () => {
    await detached(TOGETHER);
    const spent = beyondTime(await costs());
    expect(spent).toMatchObject({ 'accept-jobs': 1 });
    expect(spent['claim-jobs']).toBeLessThan(TOGETHER / 10);
    expect(spent['start-jobs'] ?? 0).toBeLessThan(TOGETHER / 4);
    expect(spent['finish-jobs']).toBeLessThan(TOGETHER / 4);
    expect(Object.keys(spent)).toHaveLength(spent['start-jobs'] === undefined ? 3 : 4);
  });

  test('of a request the body is put together once and read once, and copied no more', async () => {
    const content = 'x'.repeat(200_000);
    await answered(await asked(content));
    const { copied_bytes } = await costs();
    expect(copied_bytes / content.length).toBeLessThan(2.1);
    expect(copied_bytes).toBeGreaterThan(content.length);
  });

  test('a whole answer is put together as it comes, put together to be checked and sent, and read', async () => {
    const answer = chatAnswer('y'.repeat(200_000));
    await answered(await asked('Hello'), answer);
    const { copied_bytes } = await costs();
    expect(copied_bytes / answer.length).toBeLessThan(3.1);
    expect(copied_bytes).toBeGreaterThan(answer.length);
  });

  test('its node gets an offer, the body, an end, and the word that the result is taken', async () => {
    const content = 'x'.repeat(150_000);
    const [heard, frames] = [link.heard.length, link.frames.length];
    await answered(await asked(content));
    await until('it is acknowledged', () =>
      link.heard.slice(heard).some(({ type }) => type === 'result.ack'),
    );
    const said = link.heard.slice(heard).map(({ type }) => type);
    expect(said.filter((type) => type !== 'node.heartbeat.ack')).toEqual(['job.offer', 'result.ack']);
    const body = Math.ceil(content.length / FRAME_PAYLOAD_MAX_BYTES);
    expect(link.frames.slice(frames).map(({ kind }) => kind)).toEqual([
      ...Array.from({ length: body }, () => FRAME_KIND.requestBody),
      FRAME_KIND.end,
    ]);
  });

  test('of a long answer it hears how much is handed on, every 64 KiB', async () => {
    const from = link.heard.length;
    const answer = chatAnswer('y'.repeat(200_000));
    await answered(await asked('Hello'), answer);
    const credits = link.heard.slice(from).filter((message) => message.type === 'stream.credit');
    expect(credits.length).toBeLessThanOrEqual(answer.length / ACK_EVERY_BYTES);
    expect(answer.length - credits.at(-1)!.acked_offset).toBeLessThan(ACK_EVERY_BYTES);
  });

  test('beats write nothing; a node that goes leaves when it was last heard of', async () => {
    const links = await Promise.all(Array.from({ length: NODES }, (_, n) => joined(`beating-${n}`)));
    let quiet = 0;
    await until('their registrations are written', async () => {
      quiet = Object.keys(beyondTime(await costs())).length === 0 ? quiet + 1 : 0;
      return quiet > 10;
    });
    const began_at = Date.now();
    for (let beat = 0; beat < BEATS / NODES; beat++) for (const one of links) one.beat();
    await until('each is acknowledged', () =>
      links.every(
        ({ heard }) => heard.filter(({ type }) => type === 'node.heartbeat.ack').length === BEATS / NODES,
      ),
    );
    expect(beyondTime(await costs())).toEqual({});
    links[0]!.close();
    await until('its going is written', async () => 'save-node-states' in beyondTime(await costs()));
    // The others go with the control plane.
    await world.plane.restart();
    const seen_at = (await world.nodes())
      .filter(({ name }) => name.startsWith('beating'))
      .map(({ last_seen_at }) => Date.parse(last_seen_at!));
    expect(seen_at).toHaveLength(NODES);
    expect(Math.min(...seen_at)).toBeGreaterThanOrEqual(began_at);
  });

  test.skipIf(testServer === undefined)(
    'after a kill nodes are read while the start waits to be alone, and what they offer once (needs PostgreSQL: FLOTILLA_TEST_DATABASE_URL)',
    async () => {
      world.plane.program().signal('SIGKILL');
      await world.plane.program().ended;
      await world.plane.restart();
      const { statements } = await costs();
      expect(statements['load-nodes']).toBeGreaterThan(1);
      expect(statements['load-descriptors']).toBe(1);
    },
  );

  async function joined(name: string): Promise<RawLink> {
    return (await enrolRawNode(world, name)).join();
  }

  type Offer = ControlMessageOf<'job.offer'> | undefined;
  interface Offered {
    job: string;
    attempt: number;
    stream: number;
  }
  interface Asked extends Offered {
    reply: Promise<Response>;
  }

  /** A request whose body the node has, all of it. */
  async function asked(content: string): Promise<Asked> {
    const reply = world.plane.chat({ model: 'raw', messages: [{ role: 'user', content }] });
    reply.catch(() => undefined);
    return { ...(await offered()), reply };
  }

  async function offered(): Promise<Offered> {
    const { job, attempt, stream } = await until('it is offered', () => {
      const offer = link.heard.find(
        (message) => message.type === 'job.offer' && !taken.has(message.job),
      ) as Offer;
      if (offer !== undefined) taken.add(offer.job);
      return offer;
    });
    await until('the request is there', () =>
      link.frames.some((frame) => frame.stream === stream && frame.kind === FRAME_KIND.end),
    );
    const received = link.frames.reduce(
      (sum, { payload }) => sum + FRAME_HEADER_BYTES + payload.byteLength,
      0,
    );
    link.send({ type: 'link.ack', received });
    return { job, attempt, stream };
  }

  /** Sends a whole answer, and waits until the client has it. */
  async function answered({ reply, ...offer }: Asked, answer = chatAnswer('Hello')): Promise<void> {
    done(offer, answer);
    expect(await (await reply).text()).toBe(answer);
  }

  function done({ job, attempt, stream }: Offered, answer: string): void {
    const headers = { 'content-type': 'application/json' };
    const usage = { prompt_tokens: 1, completion_tokens: 1, cached_tokens: 0, estimated: false };
    link.together(() => {
      link.send({ type: 'job.started', job, attempt });
      link.frame(FRAME_KIND.responseHead, stream, 0, JSON.stringify({ status: 200, headers }));
      for (let at = 0; at < answer.length; at += FRAME_PAYLOAD_MAX_BYTES)
        link.frame(FRAME_KIND.responseBody, stream, at, answer.slice(at, at + FRAME_PAYLOAD_MAX_BYTES));
      link.frame(FRAME_KIND.end, stream, answer.length, Buffer.of(END_OUTCOME.complete));
      link.send({
        type: 'job.completed',
        job,
        attempt,
        result: { status: 200, length: answer.length },
        usage,
      });
    });
  }

  async function detached(jobs: number): Promise<void> {
    const job = { model: 'raw', request: { messages: [{ role: 'user', content: 'Hello' }] } };
    const { data } = await world.plane.send<{ data: { id: string }[] }>('POST', '/api/v1/jobs/batch', {
      jobs: Array.from({ length: jobs }, () => job),
    });
    for (const _ of data) done(await offered(), chatAnswer('Hello'));
    await until('their results are committed', () => {
      const acknowledged = link.heard.flatMap((said) => (said.type === 'result.ack' ? [said.job] : []));
      return data.every(({ id }) => acknowledged.includes(id));
    });
  }

  /** Since the last time. */
  async function costs(): Promise<Costs> {
    const told = () => [...world.plane.output().matchAll(/^costs (.*)$/gm)];
    const before = told().length;
    world.plane.program().signal('SIGUSR2');
    await until('it has told', () => told().length > before);
    return JSON.parse(told().at(-1)![1]!) as Costs;
  }
});

function beyondTime({ statements }: Costs): Record<string, number> {
  return Object.fromEntries(Object.entries(statements).filter(([name]) => !BY_TIME.test(name)));
}

test('a daemon answers with a head, a body and an end, says that it began and is done, and sends together what came together', async () => {
  const control = await startScriptedPlane();
  const answer = chatAnswer('Hello');
  const backend = await startScriptedBackend((_request, response) => {
    response.writeHead(200, { 'content-type': 'application/json' });
    // Each piece in a chunk of its own; what is written in one turn goes in one packet.
    for (let at = 0; at < answer.length; at += 10) response.write(answer.slice(at, at + 10));
    response.end();
  });
  const state_dir = await mkdtemp(join(tmpdir(), 'flotilla-counted-'));
  await writeFile(
    join(state_dir, 'node.yaml'),
    JSON.stringify({ find_backends: false, backends: [{ url: backend.url, slots: 4, probe: 'list' }] }),
  );
  const daemon = flotilla(['join', control.url, '--token', 'fle_scripted', '--state-dir', state_dir], {
    FLOTILLA_NODE_STATUS_PORT: '0',
  });
  try {
    const link = await control.registered(0);
    await until('it beats', () => link.heard.some(({ type }) => type === 'node.heartbeat'));
    expect(await link.ask('first', { model: 'scripted', messages: [] })).toBe(answer);
    const kinds: number[] = [];
    link.ws.on('message', (data: Buffer, binary) => {
      if (binary) kinds.push(data[0]!);
    });
    const from = link.heard.length;
    expect(await link.ask('second', { model: 'scripted', messages: [] })).toBe(answer);
    const said = link.heard.slice(from).map(({ type }) => type);
    expect(said.filter((type) => type !== 'node.heartbeat')).toEqual(['job.started', 'job.completed']);
    expect(kinds).toEqual([FRAME_KIND.responseHead, FRAME_KIND.responseBody, FRAME_KIND.end]);
  } finally {
    daemon.signal('SIGKILL');
    await daemon.ended;
    await control.close();
    await backend.close();
    await rm(state_dir, { recursive: true });
  }
});
