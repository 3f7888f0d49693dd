import { FlotillaApiError } from '@flotilla/sdk';
import { listOf } from './help.ts';
import { note } from './terminal/output.ts';
import { harmless } from './terminal/text.ts';

/** A failure for the person at the terminal: what went wrong, and what to do next. */
export class CommandError extends Error {
  override readonly name: string = 'CommandError';
  readonly next: string | undefined;

  constructor(message: string, next?: string, options?: ErrorOptions) {
    super(message, options);
    this.next = next;
  }
}

/** The command was written wrongly: exit code 2. */
export class UsageError extends CommandError {
  override readonly name = 'UsageError';
}

/** `unwanted`: the control plane wants this daemon no more (revoked, superseded); another start would change nothing. */
export const EXIT = { done: 0, failed: 1, usage: 2, unwanted: 3 } as const;

/** Reports an error on stderr, as JSON when the command was asked for JSON, and says which exit code it has. */
export function report(error: unknown, json: boolean): number {
  const { message, next } = explain(error);
  if (json)
    note(JSON.stringify({ error: { message, ...(next === undefined ? {} : { next }), ...factsOf(error) } }));
  else note(`error: ${harmless(message)}${next === undefined ? '' : `\n${harmless(next)}`}`);
  if (process.env['FLOTILLA_LOG_LEVEL'] === 'debug' && error instanceof Error) note(error.stack ?? '');
  return isUsage(error) ? EXIT.usage : EXIT.failed;
}

/** A wrong setting or address is wrong usage wherever it was found; its package is loaded only where it is needed. */
function isUsage(error: unknown): boolean {
  return error instanceof UsageError || (error instanceof Error && WRONG_SETTINGS.has(error.name));
}

const WRONG_SETTINGS = new Set(['ConfigError', 'AddressError']);

function factsOf(error: unknown): object {
  if (!(error instanceof FlotillaApiError)) return {};
  const { code, status, request_id, retry_after_ms, param } = error;
  return { code, status, request_id, retry_after_ms, param };
}

function explain(error: unknown): { message: string; next?: string | undefined } {
  if (error instanceof CommandError) return error;
  if (error instanceof FlotillaApiError) {
    // The code is what docs/reference/errors.md goes by, and a search.
    const id = error.request_id === undefined ? '' : `, request ${error.request_id}`;
    return { message: `${error.message} (${error.code}${id})`, next: nextAfter(error) };
  }
  // What the daemon and the control plane refuse says itself what to do; these are faults of ours.
  const message = error instanceof Error ? error.message : String(error);
  if (error instanceof Error && !FAULTS.has(error.name)) return { message };
  return {
    message,
    next: 'This is a fault of flotilla. With FLOTILLA_LOG_LEVEL=debug it also says where it happened.',
  };
}

const FAULTS = new Set(['TypeError', 'RangeError', 'ReferenceError', 'SyntaxError']);

function nextAfter(error: FlotillaApiError): string | undefined {
  switch (error.code) {
    case 'unreachable':
      if (/certificate/i.test(error.message)) {
        return "If it is signed by an authority of your own, give that one's certificate in NODE_EXTRA_CA_CERTS.";
      }
      if (/wrong version number|packet length too long/i.test(error.message)) {
        return 'What listens there speaks no TLS: its address begins with http://, unless the port is another.';
      }
      return 'Is it running? `flotilla up` starts one here; --url or FLOTILLA_URL names another.';
    case 'unauthorized':
      return 'Give a valid key with --api-key or FLOTILLA_API_KEY; `flotilla up` keeps its own in <data-dir>/admin-key.';
    case 'forbidden':
      return 'This key may not do that; an admin can make one that may: flotilla keys create --help.';
    case 'model_not_found':
      // Which a key for jobs may not ask; nor does what was refused tell which key it was.
      return 'See what there is: flotilla models (with a key for inference, or as admin)';
    case 'not_found': {
      // What is missing names its kind, which need not be what the command is about. Of a thing that is there something
      // may be missing, too, like the result of a job: no list tells of that.
      const noun = /^There is no ([^"]*) "/.exec(error.message)?.[1];
      const list = noun === undefined ? undefined : listOf(noun);
      return list === undefined ? undefined : `See which there are: ${list}`;
    }
    case 'no_capacity':
      return 'See which node that is about: flotilla nodes';
    default:
      return error.retry_after_ms === undefined
        ? undefined
        : `It may work in ${Math.ceil(error.retry_after_ms / 1000)} s.`;
  }
}
