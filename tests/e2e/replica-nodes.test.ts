import type { NodeView } from '@flotilla/protocol';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { enrolHttpNode } from '../support/http-node.ts';
import { NATS_URL } from '../support/nats.ts';
import { type RawLink, enrolRawNode, openRawLink, rawRegistration } from '../support/raw-node.ts';
import { until } from '../support/until.ts';
import { type Plane, type World, openWorld } from '../support/world.ts';

/** Nodes that come to two replicas on one PostgreSQL and one NATS, each link written by the test. */
const HEARTBEAT_MS = 2000;

describe.skipIf(NATS_URL === undefined)('at two replicas (they need PostgreSQL and NATS)', () => {
  let world: World;
  let first: Plane;
  let second: Plane;
  beforeAll(async () => {
    world = await openWorld({ heartbeat_ms: HEARTBEAT_MS, nats_url: NATS_URL! });
    first = world.plane;
    second = await world.replica();
  });
  afterAll(() => world.close());

  /** A credential that one made is not known to the other in the same moment. */
  const linkTo = (plane: Plane, credential: string) =>
    until('its credential is known', () =>
      openRawLink(`${plane.url.replace('http', 'ws')}/node/v1/link`, credential).catch(() => undefined),
    );
  const joined = async (plane: Plane, credential: string, registration: Record<string, unknown>) => {
    const link = await linkTo(plane, credential);
    link.send(registration);
    const { epoch } = await link.next('node.registered');
    return { link, epoch };
  };
  const viewOn = (plane: Plane, id: string) => plane.get<NodeView>(`/api/v1/nodes/${id}`);
  const knownElsewhere = (id: string) =>
    until('the first knows that the second has it', async () => {
      const { replica } = await viewOn(first, id);
      return replica !== null && replica === (await viewOn(second, id)).replica;
    });
  const refusalOf = async (link: RawLink) => {
    const { code } = await link.closed;
    return [code, link.heard.flatMap((message) => (message.type === 'error' ? [message.code] : []))];
  };

  test('a second daemon with a credential is refused while the first lives, and both say so', async () => {
    const { id, credential } = await enrolRawNode(world, 'twice');
    const { link } = await joined(second, credential, rawRegistration('twice'));
    link.beats(500);
    await knownElsewhere(id);
    const other = await linkTo(first, credential);
    other.send(rawRegistration('twice', { boot_id: 'boot-other' }));
    expect(await refusalOf(other)).toEqual([4003, ['node_in_use']]);
    expect(link.ws.readyState).toBe(link.ws.OPEN);
    for (const plane of [first, second]) {
      expect((await viewOn(plane, id)).why.alarms.join()).toContain('second daemon');
    }
    link.close();
  });

  test('one that the other has the link of is revoked in the answer already', async () => {
    const { id, credential } = await enrolRawNode(world, 'revoked');
    const { link } = await joined(second, credential, rawRegistration('revoked'));
    link.beats(500);
    await knownElsewhere(id);
    const answer = await first.send<NodeView>('POST', `/api/v1/nodes/${id}/revoke`, {});
    expect(answer.state).toBe('revoked');
    expect((await link.closed).code).toBe(4001);
  });

  test('the same process is let in at once, although its former link lives', async () => {
    const { id, credential } = await enrolRawNode(world, 'again');
    const before = await joined(second, credential, rawRegistration('again'));
    before.link.beats(500);
    await knownElsewhere(id);
    // Also one that does not say which link was its last.
    for (const [plane, epoch] of [
      [first, { epoch: before.epoch }],
      [second, {}],
    ] as const) {
      const { link } = await joined(plane, credential, rawRegistration('again', epoch));
      link.beats(500);
      await until('it is linked there', async () => (await plane.linked()).includes(id));
    }
    expect((await before.link.closed).code).not.toBe(4003);
  });

  test('the same process is not kept waiting by a replica that does not answer', async () => {
    const { id, credential } = await enrolRawNode(world, 'quick');
    const { link, epoch } = await joined(second, credential, rawRegistration('quick'));
    await knownElsewhere(id);
    const next = await linkTo(first, credential);
    second.program().signal('SIGSTOP');
    const began_ms = performance.now();
    next.send(rawRegistration('quick', { epoch }));
    await next.next('node.registered');
    expect(performance.now() - began_ms).toBeLessThan(450);
    second.program().signal('SIGCONT');
    link.close();
    next.close();
  });

  test('a call of a session over plain HTTP is told where it belongs by the other, and goes on at its own', async () => {
    const node = await enrolHttpNode(world, 'plain');
    await node.register();
    const beatAt = async (plane: Plane) => {
      const reply = await fetch(`${plane.url}/node/v1/heartbeat?session=${node.session}`, {
        method: 'POST',
        headers: { authorization: `Bearer ${node.credential}`, 'content-type': 'application/json' },
        body: '{}',
      });
      return { status: reply.status, text: await reply.text() };
    };
    const { status, text } = await until('its credential is known', async () => {
      const reply = await beatAt(second);
      return reply.status === 401 ? undefined : reply;
    });
    expect(status).toBe(409);
    expect(JSON.parse(text)).toMatchObject({
      error: { code: 'wrong_session', message: expect.stringContaining('balancer') },
    });
    expect((await beatAt(first)).status).toBe(200);
  });

  test('nodes that fell silent together and are linked to the other one hold back nobody’s work', async () => {
    const nodes = await Promise.all(
      Array.from({ length: 6 }, (_, index) => enrolRawNode(world, `one-of-${index}`)),
    );
    const joinAt = (plane: Plane) =>
      Promise.all(
        nodes.map(async ({ credential }, index) => {
          const name = `one-of-${index}`;
          const { link } = await joined(plane, credential, rawRegistration(name));
          link.beats(500);
          return link;
        }),
      );
    for (const link of await joinAt(second)) link.close();
    await until('the brake holds', () => second.output().includes('requeueing is held back'));
    const links = await joinAt(first);
    await until('it is released', () => second.output().includes('brake released'), 10_000);
    expect(first.output()).not.toContain('requeueing is held back');
    for (const link of links) link.close();
  });

  test('another daemon takes over from one that hangs, or whose replica does', async () => {
    const { id, credential } = await enrolRawNode(world, 'hung');
    const { link } = await joined(second, credential, rawRegistration('hung'));
    await knownElsewhere(id);
    // It reads nothing, and answers no ping.
    link.ws.pause();
    const next = await joined(first, credential, rawRegistration('hung', { boot_id: 'boot-next' }));
    next.link.beats(500);
    expect(await first.linked()).toContain(id);
    link.close();

    const far = await enrolRawNode(world, 'far');
    const last = await joined(second, far.credential, rawRegistration('far'));
    last.link.beats(500);
    await knownElsewhere(far.id);
    second.program().signal('SIGSTOP');
    const tookMs = async (registration: Record<string, unknown>) => {
      const began_ms = performance.now();
      const { epoch } = await joined(first, far.credential, rawRegistration('far', registration));
      expect(epoch).toBeGreaterThan(last.epoch);
      return performance.now() - began_ms;
    };
    expect(await tookMs({ boot_id: 'boot-next' })).toBeGreaterThan(450);
    second.program().signal('SIGCONT');
  });
});
