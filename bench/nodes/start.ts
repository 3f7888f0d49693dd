import { until } from '../../tests/support/until.ts';
import type { Plane, World } from '../../tests/support/world.ts';
import { type Script, startServer } from '../script.ts';
import { joinNode, MODEL, type Place } from '../targets.ts';

/** Who does the jobs: the node that does nothing, or the real daemon with the instant backend. */
export const NODES = ['no-op node', 'daemon'] as const;
export type NodeKind = (typeof NODES)[number];

export interface BenchNode {
  pid: number;
  /** Of what tells when the numbered jobs came. */
  port: number;
}

/** It goes with the world, except the no-op node, which is `stop`ped before. */
export async function startNode(
  kind: NodeKind,
  world: World,
  place: Place,
): Promise<BenchNode & Pick<Script, 'stop'>> {
  if (kind === 'daemon') {
    const node = await joinNode(world, place);
    return { pid: node.program().pid, port: place.backend_port, stop: () => Promise.resolve() };
  }
  const { plane } = world;
  const script = await startServer('nodes/no-op.ts', {
    CONTROL_URL: plane.url,
    NODE_NAME: 'no-op',
    CREDENTIAL: await enrol(plane, 'no-op'),
  });
  await until('the model is there', async () => {
    const { data } = await plane.get<{ data: { id: string }[] }>('/v1/models');
    return data.some(({ id }) => id === MODEL);
  });
  return script;
}

async function enrol(plane: Plane, name: string): Promise<string> {
  const { token } = await plane.send<{ token: string }>('POST', '/api/v1/enrolment-tokens', {});
  const { credential } = await plane.send<{ credential: string }>('POST', '/node/v1/enrol', { token, name });
  return credential;
}
