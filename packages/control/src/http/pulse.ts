import type { Clock } from '@flotilla/core';
import { begunHeaders } from './begun-headers.ts';
import type { Handlers } from './routing.ts';

const EVENTS = 5;
const GAP_MS = 100;

/** A stream whose timing its reader knows beforehand: what arrives in one piece was held back on the way. */
export function pulseRoutes(clock: Clock): Pick<Handlers, 'pulse'> {
  return {
    async pulse({ request, reply }) {
      reply.hijack();
      const { raw } = reply;
      raw.on('error', () => undefined); // the client went away
      raw.writeHead(200, {
        ...begunHeaders(reply),
        'content-type': 'text/event-stream',
        'x-accel-buffering': 'no',
      });
      if (request.method === 'HEAD') {
        raw.end();
        return;
      }
      for (let at = 0; at < EVENTS && !raw.destroyed; at++) {
        if (at > 0) await new Promise<void>((over) => clock.after(GAP_MS, over));
        raw.write(`data: {"event":${at + 1},"of":${EVENTS}}\n\n`);
      }
      raw.end();
    },
  };
}
