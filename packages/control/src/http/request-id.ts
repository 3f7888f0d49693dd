import type { Clock, Random } from '@flotilla/core';
import { makeId } from '@flotilla/protocol';
import type { IncomingMessage } from 'node:http';

/** What may go into a log line and a reply header as it came. */
const SANE = /^[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}$/;

/** The client's own `x-request-id` where it is sane, so that its log and ours can be laid side by side; else a new one. */
export function requestIds(
  clock: Clock,
  random: Random,
): (request?: Pick<IncomingMessage, 'headers'>) => string {
  return (request) => {
    const given = request?.headers['x-request-id'];
    if (typeof given === 'string' && SANE.test(given)) return given;
    return makeId('request', clock.wall_ms(), random.bytes(10));
  };
}
