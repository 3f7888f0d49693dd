import { hostname } from 'node:os';
import { join } from 'node:path';
import { type Flotilla, FlotillaApiError } from '@flotilla/sdk';
import { isLoopback } from '../client.ts';
import { CommandError } from '../failure.ts';
import { SIMULATED_BACKEND } from '../node/run.ts';
import { Part } from './part.ts';

export interface LocalNode {
  id: string;
  name: string;
  part: Part;
}

/** Where the node that `flotilla up` runs has its files. */
export function nodeStateDir(data_dir: string): string {
  return join(data_dir, 'node');
}

/**
 * Starts the node on this machine as a process of its own, enrolled if it is not yet.
 * @param url where the control plane answers on this machine
 */
export async function startLocalNode(
  client: Flotilla,
  url: string,
  data_dir: string,
  simulated: string | undefined,
): Promise<LocalNode> {
  const state_dir = nodeStateDir(data_dir);
  const { id, name } = (await kept(client, state_dir)) ?? (await enrolHere(client, url, state_dir));
  const part = new Part('node', {
    args: () => ['node', 'run', '--state-dir', state_dir],
    log: join(data_dir, 'logs', 'node.log'),
    environment: {
      // The port may be another one than at enrolment.
      FLOTILLA_NODE_CONTROL_URL: url,
      ...(simulated === undefined ? {} : { [SIMULATED_BACKEND]: simulated }),
    },
  });
  part.start();
  return { id, name, part };
}

/** The enrolment of an earlier start, if this control plane still knows it. */
async function kept(client: Flotilla, state_dir: string): Promise<{ id: string; name: string } | undefined> {
  const { forgetEnrolment, readCredential, statePaths } = await import('@flotilla/daemon/local');
  const credential = await readCredential(statePaths(state_dir));
  if (credential === null) return undefined;
  const { node_id, url } = credential;
  try {
    const { id, name, state } = await client.nodes.show(node_id);
    if (state !== 'revoked') return { id, name };
  } catch (error) {
    if (!(error instanceof FlotillaApiError) || error.status !== 404) throw error;
  }
  if (!isLoopback(url)) {
    throw new CommandError(
      `This machine is a node of ${url}; its files are in ${state_dir}.`,
      'Start without a node here (--no-node), give this fleet another --data-dir, or leave there: flotilla node leave.',
    );
  }
  // Of a control plane whose data is gone, or a node that was revoked here: nothing can be done with it.
  await forgetEnrolment(state_dir);
  return undefined;
}

async function enrolHere(
  client: Flotilla,
  url: string,
  state_dir: string,
): Promise<{ id: string; name: string }> {
  const { enrol, EnrolError } = await import('@flotilla/daemon');
  const { token, id: token_id } = await client.tokens.create({ ttl_ms: 300_000, max_uses: 1 });
  try {
    // The name may be taken by this machine's own node of before, whose files are gone.
    for (const name of [undefined, ...Array.from({ length: 8 }, (_, at) => `${shortHostName()}-${at + 2}`)]) {
      try {
        // The way to a control plane in the parent process leaves the machine under no address.
        const enrolment = await enrol({ state_dir, url, token, name, insecure: true });
        return { id: enrolment.node_id, name: enrolment.name };
      } catch (error) {
        if (!(error instanceof EnrolError) || error.code !== 'name_taken') throw error;
      }
    }
    throw new CommandError(
      `All names like ${shortHostName()} are taken.`,
      'Delete old nodes: flotilla nodes delete NAME',
    );
  } finally {
    await client.tokens.delete(token_id).catch(() => undefined);
  }
}

function shortHostName(): string {
  const name = (hostname().split('.')[0] ?? '').replaceAll(/[^A-Za-z0-9-]+/g, '-').replace(/^-+/, '');
  return name.slice(0, 50) || 'node';
}
