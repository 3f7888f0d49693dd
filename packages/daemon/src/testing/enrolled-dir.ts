import { openStateDir, type StatePaths, writeCredential } from '../state-dir.ts';
import { folder } from './folder.ts';

/** A state directory as `join` leaves it. */
export async function enrolledDir(control_url: string): Promise<StatePaths> {
  const paths = await openStateDir(await folder());
  await writeCredential(paths, {
    url: control_url,
    node_id: 'node_1',
    name: 'box',
    credential: 'fln_secret',
    insecure: false,
    enrolled_at: '',
  });
  return paths;
}
