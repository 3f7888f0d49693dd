import type { Clock, Log, Store } from '@flotilla/core';
import { FlotillaError } from '@flotilla/protocol';
import { Readable, finished, pipeline } from 'node:stream';
import { createGzip } from 'node:zlib';
import { version } from '../version.ts';
import { begunHeaders } from './begun-headers.ts';
import type { Handlers } from './routing.ts';
import { cutStalled } from './stall.ts';

export interface BackupDeps {
  store: Pick<Store, 'dump'>;
  clock: Clock;
  log: Log;
  /** A client that takes nothing for this long is gone; the snapshot is not held for it. */
  stall_ms: number;
}

/** A snapshot costs memory and disk, or keeps a database from cleaning up: one at a time. */
export function backupRoutes({ store, clock, log, stall_ms }: BackupDeps): Pick<Handlers, 'backup'> {
  let running = false;
  return {
    async backup({ request, reply, principal }) {
      const now = new Date(clock.wall_ms());
      const headers = {
        'content-type': 'application/gzip',
        'content-disposition': `attachment; filename="flotilla-${now.toISOString().replaceAll(':', '')}.backup"`,
      };
      if (request.method === 'HEAD') {
        reply.hijack();
        reply.raw.writeHead(200, { ...begunHeaders(reply), ...headers }).end();
        return;
      }
      if (running) {
        throw new FlotillaError(
          'conflict',
          'A backup of this control plane is under way. Ask again after its end.',
        );
      }
      running = true;
      const key = principal.key.id;
      const text = store.dump(version(), now);
      let first: IteratorResult<string>;
      try {
        first = await text.next();
      } catch (error) {
        await over(text);
        throw error;
      }
      log.info({ key }, 'A backup is being taken.');
      const watch = cutStalled(reply.raw, clock, stall_ms);
      const body = createGzip();
      finished(body, (error) => {
        watch.cancel();
        if (error) log.warn({ error, key }, 'A backup ended before it was whole; its file is refused.');
        else log.info({ key }, 'The backup was taken whole.');
        void over(text);
      });
      // What ends one midway cuts the connection; a client that goes, or a refusal after this, ends the snapshot.
      pipeline(Readable.from(rest(first, text)), body, () => undefined);
      reply.raw.once('close', () => body.destroy());
      // Sent only when this act has its row: nothing of the store leaves without one.
      reply.headers(headers);
      return body;
    },
  };

  async function over(text: AsyncGenerator<string>): Promise<void> {
    await text
      .return(undefined)
      .catch((error: unknown) => log.warn({ error }, 'A snapshot was not given back.'));
    running = false;
  }
}

async function* rest(first: IteratorResult<string>, text: AsyncGenerator<string>): AsyncGenerator<Buffer> {
  if (first.done === true) return;
  yield Buffer.from(first.value);
  for await (const piece of text) if (piece !== '') yield Buffer.from(piece);
}
