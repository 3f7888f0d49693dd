import { connect, type Socket } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type RawLink, enrolRawNode } from '../support/raw-node.ts';
import { until } from '../support/until.ts';
import { type World, openWorld } from '../support/world.ts';

const HEARTBEAT_MS = 2000;
const LIMIT = 6;
const NODES = 2 * LIMIT;
const CLIENTS = 3 * LIMIT;

describe('the limit of sockets', () => {
  let world: World;

  beforeAll(async () => {
    world = await openWorld({
      heartbeat_ms: HEARTBEAT_MS,
      env: { FLOTILLA_CONNECTION_LIMIT: String(LIMIT) },
    });
  });
  afterAll(() => world.close());

  test('nodes that are linked take none from clients, and leave none to them when they go', async () => {
    const links: RawLink[] = [];
    for (let n = 0; n < NODES; n++) {
      const link = await (await enrolRawNode(world, `node-${n}`)).join();
      link.beats(HEARTBEAT_MS / 4);
      links.push(link);
    }
    expect((await world.nodes()).map(({ state }) => state)).toEqual(links.map(() => 'online'));
    expect(await kept()).toBeGreaterThan(0);
    expect(await kept()).toBeLessThanOrEqual(LIMIT);
    for (const link of links) link.close();
    await until('all are gone', async () => (await world.nodes()).every(({ state }) => state !== 'online'));
    expect(await kept()).toBeLessThanOrEqual(LIMIT);
    expect(await kept()).toBeGreaterThan(0);
  });

  /** @returns how many of many sockets of clients are let in */
  async function kept(): Promise<number> {
    const sockets = await Promise.all(Array.from({ length: CLIENTS }, opened));
    await pause(300);
    const open = sockets.filter(({ readyState }) => readyState === 'open').length;
    for (const socket of sockets) socket.destroy();
    await pause(300);
    return open;
  }

  function opened(): Promise<Socket> {
    return new Promise((resolve) => {
      const socket = connect(world.plane.port, '127.0.0.1', () => resolve(socket));
      socket.on('error', () => resolve(socket));
      // What is closed at once is to be seen as such.
      socket.resume();
    });
  }
});
