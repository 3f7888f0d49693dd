import type { FinalRefusal } from '../threads.ts';

/** Why a connection ended, from every place that can say so. */
export interface Ending {
  /** HTTP status of a refused upgrade, and the error of its body where that is ours. */
  http_status?: number;
  http_error?: { code: string; message: string };
  /** The upgrade's answer had a body that is not ours: something between here and the control plane spoke. */
  close_code?: number;
  close_reason?: string;
  /** The last `error` message on the connection. */
  said?: { code: string; message: string };
  /** A failure of the network, or this side's own reason for closing. */
  error?: string;
}

/**
 * What the node does next: `again` after the usual delay, `afresh` with the first random second, `slow` at the slowest
 * pace, `stop` for good.
 */
export type Refusal =
  | { next: 'again' | 'afresh' | 'slow'; message: string }
  | { next: 'stop'; why: FinalRefusal; message: string };

/** The table of docs/reference/node-link.md. */
export function judgeEnding(ending: Ending): Refusal {
  return ending.http_status === undefined ? judgeClose(ending) : judgeUpgrade(ending.http_status, ending);
}

function judgeUpgrade(status: number, ending: Ending): Refusal {
  const said = ending.http_error?.message ?? '';
  switch (status) {
    case 401:
      return {
        next: 'slow',
        message: `The control plane does not know this node's credential. ${said}`.trim(),
      };
    case 403:
      // Whatever else answers 403 on the way must not stop a fleet for good.
      if (ending.http_error?.code !== 'revoked') {
        return { next: 'slow', message: 'Something in front of the control plane answered 403.' };
      }
      return { next: 'stop', why: 'revoked', message: `This node's credential was revoked. ${said}`.trim() };
    case 409:
      return { next: 'slow', message: `Another daemon with this credential is connected. ${said}`.trim() };
    default:
      return { next: 'again', message: `The control plane answered ${status}. ${said}`.trim() };
  }
}

function judgeClose(ending: Ending): Refusal {
  const said = ending.said?.message ?? ending.close_reason ?? '';
  switch (ending.close_code) {
    case 4001:
      return { next: 'stop', why: 'revoked', message: `This node's credential was revoked. ${said}`.trim() };
    case 4002:
      return {
        next: 'stop',
        why: 'superseded',
        message: `A newer daemon with this node's credential took over. ${said}`.trim(),
      };
    case 4003:
      return { next: 'slow', message: `Another daemon with this credential is connected. ${said}`.trim() };
    case 4004:
      return {
        next: 'stop',
        why: 'protocol',
        message: `No protocol version is spoken by both sides. ${said}`.trim(),
      };
    case 4005:
      return {
        next: 'again',
        message: `The control plane says a rule of the link was broken. ${said}`.trim(),
      };
    case 4006:
      return { next: 'again', message: 'The control plane had not heard of this node for too long.' };
    case 1009:
      return {
        next: 'slow',
        message: `A message of this node was larger than the control plane takes. ${said}`.trim(),
      };
    case 1013:
      return { next: 'again', message: `The control plane cannot take this node now. ${said}`.trim() };
    case 1001:
      return { next: 'afresh', message: 'The control plane is stopping.' };
    default:
      return { next: 'again', message: ending.error ?? closedWith(ending.close_code, said) };
  }
}

function closedWith(code: number | undefined, said: string): string {
  const plain = code === undefined || code === 1005 || code === 1006;
  return `The connection was closed${plain ? '' : ` with ${code}`}. ${said}`.trim();
}
