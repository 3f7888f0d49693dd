import { type Flotilla, FlotillaApiError, type Node } from '@flotilla/sdk';
import { CommandError } from './failure.ts';

/** A node by its id, or by its name, which is what people know. */
export async function findNode(client: Flotilla, wanted: string): Promise<Node> {
  if (wanted.startsWith('node_')) return client.nodes.show(wanted);
  for await (const node of client.nodes.list({ limit: 500 })) if (node.name === wanted) return node;
  // A node may be called anything, `node_` too; and an older server may know ids of another form.
  try {
    return await client.nodes.show(wanted);
  } catch (error) {
    if (!(error instanceof FlotillaApiError) || error.status !== 404) throw error;
    throw new CommandError(`There is no node ${wanted}.`, 'See which there are: flotilla nodes', {
      cause: error,
    });
  }
}
