import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { statePaths } from '@flotilla/daemon/local';

/** Answers on a state directory's control socket as a daemon would: by verb, and with a refusal where none is given. */
export async function fakeDaemon(answers: Record<string, object>) {
  const dir = await mkdtemp(join(tmpdir(), 'fl-'));
  const asked: Record<string, unknown>[] = [];
  const server = createServer((socket) => {
    socket.setEncoding('utf8').on('data', (line: string) => {
      const request = JSON.parse(line) as Record<string, unknown>;
      asked.push(request);
      const refused = { ok: false, code: 'failed', message: 'It refuses.' };
      socket.end(`${JSON.stringify(answers[String(request['verb'])] ?? refused)}\n`);
    });
  });
  await new Promise<void>((resolve) => server.listen(statePaths(dir).control, resolve));
  const close = async () => {
    await new Promise((resolve) => server.close(resolve));
    await rm(dir, { recursive: true, force: true });
  };
  return { dir, asked, close };
}
