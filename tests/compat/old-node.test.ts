import { globSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import type { NodeView } from '@flotilla/protocol';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openPlane, type TestPlane } from '../support/plane.ts';
import { openRawLink } from '../support/raw-node.ts';
import { type Client, type Message, readConversation, STEPS } from './conversation.ts';
import { asOfLater } from './likeness.ts';
import { PlayedNode } from './played-node.ts';

/**
 * Nodes are upgraded after the control plane, one by one: the node of each minor release, as it was recorded then
 * (record-link.ts), works with the control plane of today. So does one of the next release, as far as it can be known:
 * the same node with fields and messages that nobody knows yet.
 */
const recordings = globSync('link/*.jsonl', { cwd: import.meta.dirname }).toSorted();
const NEXT: Message = { type: 'node.of_a_later_minor', id: 'm1' };
/** Each step came out as then, and it was told that its new message is not known: nothing else was wrong. */
const WELL = { differing: [] as unknown[], refused: [NEXT['id']] as unknown[] };

describe('today’s control plane', () => {
  let plane: TestPlane;
  beforeAll(async () => {
    plane = await openPlane({ FLOTILLA_HEARTBEAT_MS: '500' });
  }, 60_000);
  afterAll(() => plane.close());

  test('there is a recording of the first release', () => {
    expect(recordings).toContain('link/0.1.jsonl');
  });

  test.each(recordings)('works with the node of %s', async (recording) => {
    expect(await play(recording, 'as-recorded', (same) => same)).toEqual(WELL);
  });

  test.each(recordings.slice(-1))('works with a node of the release after %s', async (recording) => {
    expect(await play(recording, 'later', asOfLater)).toEqual(WELL);
  });

  async function play(
    recording: string,
    name: string,
    as: (message: Message) => Message,
  ): Promise<typeof WELL> {
    const lines = readConversation(join(import.meta.dirname, recording));
    const { id, credential } = await enrol(name);
    const link = await openRawLink(`${plane.control.url.replace('http', 'ws')}/node/v1/link`, credential);
    const node = new PlayedNode(link, lines, as);
    const differing: unknown[] = [];
    let done: Promise<unknown> = Promise.resolve();
    for (const line of lines) {
      if (!('step' in line)) {
        await node.play(line);
        if ('message' in line && line.message.type === 'node.registered') {
          node.beats();
          link.send(NEXT);
        }
        continue;
      }
      if (!('outcome' in line)) done = STEPS[line.step](clientOf(id));
      else if (!isDeepStrictEqual(await done, line.outcome)) differing.push({ ...line, today: await done });
    }
    link.close();
    const refused = link.heard.flatMap((message) => (message.type === 'error' ? [message.id] : []));
    return { differing, refused };
  }

  async function enrol(name: string): Promise<{ id: string; credential: string }> {
    const { json } = await plane.call('POST', '/api/v1/enrolment-tokens', { key: plane.admin_key, body: {} });
    const { token } = json as unknown as { token: string };
    const reply = await plane.call('POST', '/node/v1/enrol', { body: { token, name } });
    return reply.json as unknown as { id: string; credential: string };
  }

  function clientOf(node_id: string): Client {
    const headers = { authorization: `Bearer ${plane.admin_key}`, 'content-type': 'application/json' };
    return {
      node_id,
      chat: (body, init) =>
        fetch(`${plane.control.url}/v1/chat/completions`, {
          method: 'POST',
          headers,
          body: JSON.stringify({ model: 'scripted', ...body }),
          ...init,
        }),
      post: async (path, body) =>
        (await plane.call('POST', path, { key: plane.admin_key, body })).json as unknown as Record<
          string,
          unknown
        >,
      // It is played back: it stops where it did.
      stopNode() {},
      async nodeState() {
        const { json } = await plane.call('GET', `/api/v1/nodes/${node_id}`, { key: plane.admin_key });
        return (json as unknown as NodeView).state;
      },
    };
  }
});
