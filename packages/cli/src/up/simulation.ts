import { join } from 'node:path';
import { CommandError } from '../failure.ts';
import { logTail } from '../log-file.ts';
import { message, Part } from './part.ts';

/** So slow that streaming can be seen, so fast that nobody waits. */
const PACE = ['--ttft-ms', '80', '--tokens-per-second', '60'];

/** Starts the simulated backend beside `flotilla up`, on a free loopback port. */
export async function startSimulation(data_dir: string): Promise<{ part: Part; url: string }> {
  const log = join(data_dir, 'logs', 'simulated-backend.log');
  // After a crash it comes back where the node knows it.
  let port = '0';
  const part = new Part('simulated backend', {
    args: () => ['sim', 'backend', '--port', port, ...PACE],
    log,
  });
  try {
    const url = String((await message(part.start(), 'listening'))['url']);
    ({ port } = new URL(url));
    return { part, url };
  } catch (cause) {
    throw new CommandError(
      `The simulated backend did not start. The end of ${log}:\n${await logTail(log)}`,
      undefined,
      {
        cause,
      },
    );
  }
}
