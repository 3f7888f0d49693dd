import type { ServerResponse } from 'node:http';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Proxy } from '../support/proxy.ts';
import { DONE, SSE, chatChunk } from '../support/scripted-backend.ts';
import { until } from '../support/until.ts';
import { type TestNode, type World, openWorld } from '../support/world.ts';

/**
 * A cut of the network while a node answers. With the default interval: with a shorter one the node's fence, or the end of
 * its lease, may come before the 5 s for which a stream waits for it.
 */
let world: World;
let way: Proxy;
let node: TestNode;
const asked: ServerResponse[] = [];

beforeAll(async () => {
  world = await openWorld({ heartbeat_ms: 5000 });
  const { url } = await world.backend((_request, response) => void asked.push(response));
  way = await world.proxy(world.plane.port);
  node = await world.node({ name: 'box', control_url: way.url, backends: [{ url, slots: 8 }] });
});
afterAll(() => world.close());

async function streamOf(text: string) {
  const pending = world.plane.chat({ stream: true, stream_options: { include_usage: false } });
  const response = await until('the backend has it', () => asked.shift());
  response.writeHead(200, SSE);
  response.write(chatChunk(text));
  const reader = (await pending).body!.pipeThrough(new TextDecoderStream()).getReader();
  const { value: seen } = await reader.read();
  const rest = async () => {
    let all = '';
    for (let part = await reader.read(); !part.done; part = await reader.read()) all += part.value;
    return all;
  };
  return { response, seen: seen!, rest };
}

const missed = () => until('the node is missed', async () => (await node.view()).state === 'suspect');

describe('a cut of the network', () => {
  it('for 1 s during a stream: the client notices nothing', async () => {
    const { response, seen, rest } = await streamOf('one');
    way.cut();
    response.write(chatChunk('two'));
    await missed();
    const restore_at = performance.now() + 1000;
    await until('a second has passed', () => performance.now() >= restore_at);
    way.restore();
    response.write(chatChunk('three'));
    response.end(DONE);
    expect(seen + (await rest())).toBe(chatChunk('one') + chatChunk('two') + chatChunk('three') + DONE);
  });

  it('during a long answer in mid-flight: no byte is repeated or missing', async () => {
    const { response, seen, rest } = await streamOf('begin');
    let expected = chatChunk('begin');
    for (let index = 0; index < 40; index++) {
      const piece = chatChunk(`${index} ${'é'.repeat(20_000)}`);
      expected += piece;
      response.write(piece);
      if (index === 15) {
        way.cut();
        await missed();
        way.restore();
      }
    }
    response.end(DONE);
    expect(seen + (await rest())).toBe(expected + DONE);
  });
});
