import { randomUUID } from 'node:crypto';
import type { ServerResponse } from 'node:http';
import { join } from 'node:path';
import type { JobView, UsageRow } from '@flotilla/protocol';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { flotilla } from '../support/program.ts';
import { chatAnswer, chatChunk, DONE, type Handler, SSE } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';

/** What clients and operators may rely on when the control plane dies, or a second one is started. */
const answered: Handler = ({ body }, response) => {
  if (!body.includes('"stream":true')) {
    response.setHeader('content-type', 'application/json');
    return void response.end(chatAnswer('well'));
  }
  response.writeHead(200, SSE);
  response.end(chatChunk('well', 'stop') + DONE);
};

describe('kill -9 of the control plane under load', () => {
  const CLIENTS = 16;
  let world: World;
  let node: TestNode;
  const held: ServerResponse[] = [];
  /** Of every answer that a client received whole. */
  const received = new Set<string>();
  beforeAll(async () => {
    world = await openWorld();
    const quick = await world.backend(answered, ['quick']);
    const slow = await world.backend((_request, response) => void held.push(response), ['slow']);
    node = await world.node({
      name: 'box',
      backends: [
        { url: quick.url, slots: 8 },
        { url: slow.url, slots: 2 },
      ],
    });
  }, 60_000);
  afterAll(() => world.close());

  /** Asks until the control plane is gone. */
  async function client(streams: boolean): Promise<void> {
    for (;;) {
      const id = randomUUID();
      try {
        const reply = await world.plane.chat(
          { model: 'quick', stream: streams },
          { headers: { 'x-request-id': id } },
        );
        const text = await reply.text();
        if (reply.status === 200 && (!streams || text.endsWith(DONE))) received.add(id);
      } catch {
        return;
      }
    }
  }

  async function allUsage(): Promise<UsageRow[]> {
    const rows: UsageRow[] = [];
    for (let after = ''; ; ) {
      const page = await world.plane.get<{ data: UsageRow[]; next_after: string | null }>(
        `/api/v1/usage?limit=500${after}`,
      );
      rows.push(...page.data);
      if (page.next_after === null) return rows;
      after = `&after=${page.next_after}`;
    }
  }

  const jobs = async (query: string) =>
    (await world.plane.get<{ data: JobView[] }>(`/api/v1/jobs?limit=500${query}`)).data;

  it.each([1, 2, 3])(
    'loses no answer that a client has, and ends what was open (%i)',
    async () => {
      const before = received.size;
      const slow = [true, false].map((stream) =>
        world.plane.chat({ model: 'slow', stream }).then(
          (reply) => reply.status,
          () => 'cut off',
        ),
      );
      const open = await until('they run', async () => {
        const running = (await jobs('&model=slow')).filter((job) => job.state === 'running');
        return running.length === 2 && running;
      });
      const clients = Array.from({ length: CLIENTS }, (_, index) => client(index % 2 === 0));
      // What has been open for a second has a row.
      const recorded_at = Math.max(...open.map((job) => Date.parse(job.created_at))) + 1300;
      await until('much was answered', () => received.size - before > 200 && Date.now() > recorded_at);
      world.plane.program().signal('SIGKILL');
      await Promise.all(clients);
      expect(await Promise.all(slow)).toEqual(['cut off', 'cut off']);
      held.splice(0);
      await world.plane.restart();
      // The node is on its way back: its models are there meanwhile, and who asks for one waits.
      const models = await world.plane.get<{ data: { id: string }[] }>('/v1/models');
      expect(models.data.map(({ id }) => id)).toContain('quick');
      expect((await world.plane.chat({ model: 'quick' })).status).toBe(200);

      const settled = new Map<string, UsageRow[]>();
      for (const row of await allUsage())
        settled.set(row.request_id!, [...(settled.get(row.request_id!) ?? []), row]);
      const sound = (row: UsageRow) =>
        row.outcome === 'succeeded' && row.status === 200 && row.model === 'quick' && row.node === node.id;
      const lost = [...received].filter((id) => {
        const rows = settled.get(id) ?? [];
        return rows.length !== 1 || !rows.every(sound);
      });
      expect(lost).toEqual([]);
      expect((await jobs('')).filter((job) => job.finished_at === null)).toEqual([]);
      for (const { id } of open) {
        const job = await world.plane.get<JobView>(`/api/v1/jobs/${id}`);
        expect(job).toMatchObject({ state: 'failed', error: { code: 'unavailable' } });
      }
      expect((await node.view()).pools.map(({ reserved }) => reserved)).toEqual([0, 0]);
    },
    40_000,
  );

  it('leaves the way free for one control plane only: a second one is told the reason, and harms nobody', async () => {
    const { database_url } = world;
    const data_dir = join(world.dir, 'plane');
    const second = flotilla(['control'], {
      HOME: world.dir,
      FLOTILLA_PORT: '0',
      FLOTILLA_DATA_DIR: data_dir,
      ...(database_url !== undefined && { DATABASE_URL: database_url }),
    });
    const { code, stderr } = await second.ended;
    expect(code).toBe(1);
    if (database_url === undefined) {
      expect(stderr).toContain(
        `The data directory ${data_dir} is in use by process ${world.plane.program().pid}`,
      );
      expect(stderr).toContain('Stop that process first');
    } else {
      expect(stderr).toMatch(/Another control plane \(rep_\w+\) is running on this database/);
      expect(stderr).toContain('set the same NATS_URL');
    }
    expect((await world.plane.chat({ model: 'quick' })).status).toBe(200);
  });
});
