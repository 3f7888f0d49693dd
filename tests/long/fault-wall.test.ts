import { readFile } from 'node:fs/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { SimBackend } from '../../packages/cli/src/sim/backend.ts';
import { FAULT_NAMES, isFaultName } from '../../packages/cli/src/sim/fault.ts';
import { type World, openWorld } from '../support/world.ts';

/**
 * Every way in which a model server or an upstream API goes wrong, at a node's backend and at a provider, in a stream
 * and in a whole answer, with a place behind it and without: what the client gets is what docs/guides/faults.md says.
 */
const UNRESOLVED = 'name that does not resolve';
const SILENT_MS = 700;
const PLACES = ['node', 'provider'] as const;

interface Cell {
  fault: string;
  streaming: boolean;
  /** Another place has the model, too. */
  backed: boolean;
  /** What the guide says of a node and of a provider. */
  says: [node: string, provider: string];
  /** Of a model and of a backend that no other cell has: a failure is remembered. */
  model: string;
}

const cells = await tableOf('faults.md');
let world: World;
const servers: SimBackend[] = [];

async function tableOf(guide: string): Promise<Cell[]> {
  const text = await readFile(new URL(`../../docs/guides/${guide}`, import.meta.url), 'utf8');
  const rows = [...text.matchAll(/^\| `?([^|`]+)`? \|(.+)\|$/gm)].slice(1);
  return rows.flatMap(([, name = '', rest = '']) => {
    const fault = name.trim();
    return rest.split('|').map((says, column): Cell => {
      const [node = '', provider = node] = says.split(' / ').map((one) => one.trim());
      const streaming = column >= 2;
      const backed = column % 2 === 0;
      const model = `${fault.replaceAll(' ', '-')}-${streaming ? 'stream' : 'whole'}-${backed ? 'backed' : 'alone'}`;
      return { fault, streaming, backed, says: [node, provider], model };
    });
  });
}

async function server(models: string[]): Promise<SimBackend> {
  const one = new SimBackend({ models });
  await one.listen();
  servers.push(one);
  return one;
}

beforeAll(async () => {
  world = await openWorld({
    env: {
      FLOTILLA_SECRET_KEY: 's'.repeat(40),
      FLOTILLA_FIRST_BYTE_TIMEOUT_MS: String(SILENT_MS),
      FLOTILLA_IDLE_TIMEOUT_MS: String(SILENT_MS),
      FLOTILLA_RUN_TIMEOUT_MS: '10000',
      FLOTILLA_QUEUE_TIMEOUT_MS: '5000',
    },
  });
  const faulty = await Promise.all(
    cells.map(async (cell) => {
      const named = cell.fault === UNRESOLVED;
      const backend = named ? undefined : await server([cell.model]);
      return {
        ...cell,
        backend,
        url: backend === undefined ? 'http://nowhere.invalid/v1' : `${backend.url}/v1`,
      };
    }),
  );
  const sound = await server(cells.map(({ model }) => model));
  await world.node({
    name: 'sound',
    token: { labels: { wall: 'sound' } },
    backends: [{ url: `${sound.url}/v1`, slots: 200 }],
  });
  await world.node({
    name: 'faulty',
    token: { labels: { wall: 'faulty' } },
    backends: faulty
      .filter(({ backend }) => backend !== undefined)
      .map(({ url }) => ({ url, idle_timeout_ms: SILENT_MS })),
  });
  for (const { model, url, backed } of faulty) {
    const provider = await world.plane.send<{ id: string }>('POST', '/api/v1/providers', {
      name: model,
      base_url: url,
      api_key: 'sk-wall-0123456789',
    });
    const behind = backed ? [{ model, labels: { wall: 'sound' } }] : [];
    const route = (name: string, first: object) =>
      world.plane.send('POST', '/api/v1/routes', { name: `${name}/${model}`, targets: [first, ...behind] });
    await route('node', { model, labels: { wall: 'faulty' } });
    await route('provider', { provider: provider.id, model });
  }
  for (const { backend, fault } of faulty) {
    if (isFaultName(fault)) backend!.setFaults([{ name: fault, left: Number.POSITIVE_INFINITY }]);
  }
}, 120_000);
afterAll(async () => {
  await world.close();
  await Promise.all(servers.map((one) => one.close()));
});

/** What a client got, in the guide's words. */
async function outcome(place: string, { model, streaming }: Cell): Promise<string> {
  const reply = await world.plane.chat({ model: `${place}/${model}`, ...(streaming && { stream: true }) });
  const text = await reply.text();
  const last =
    streaming && reply.ok
      ? text
          .trimEnd()
          .split('\n\n')
          .at(-1)!
          .replace(/^data: /, '')
      : text;
  if (last === '[DONE]' || (!streaming && reply.ok)) {
    const events = text.split('\n\n').filter((event) => event.startsWith('data: {'));
    for (const event of streaming ? events.map((one) => one.slice(6)) : [text]) JSON.parse(event);
    return reply.headers.get('x-flotilla-node') === 'sound' ? 'from elsewhere' : 'the answer';
  }
  const { error } = JSON.parse(last) as { error: { code: string; attempts: { message: string }[] } };
  expect(text.includes('[DONE]\n')).toBe(false);
  return `${streaming && reply.ok ? 'in the stream' : reply.status} \`${error.code}\``;
}

describe('the wall of faults', () => {
  test('has a row for each', () => {
    const rows = cells.flatMap(({ fault }, index) => (index % 4 === 0 ? [fault] : []));
    expect(rows.toSorted()).toEqual([...FAULT_NAMES, UNRESOLVED].toSorted());
  });

  test.concurrent.for(cells)(
    '$model is what the guide says',
    { timeout: 60_000 },
    async (cell, { expect }) => {
      const got = await Promise.all(PLACES.map((place) => outcome(place, cell)));
      // Which of two words it is depends on whether a probe came first.
      const agreed = cell.says.map((says, index) =>
        says.split(' or ').includes(got[index]!) ? says : got[index],
      );
      expect(agreed).toEqual(cell.says);
    },
  );
});
