import { DONE_EVENT, dataEvent, errorScript, isStream, type Piece, type Script } from './script.ts';

/** Everything that a backend is known to do wrong, by name. The descriptions are the command's help. */
export const FAULTS = {
  refuse: 'connections are refused: nothing listens; with a count, that many are accepted and reset',
  'reset-before-headers': 'the connection is reset once the request is read',
  'reset-after-headers': 'the connection is reset after the head of the answer',
  'stall-first-byte': 'nothing is answered; the connection stays open',
  'stall-mid-stream': 'half of the answer, then nothing; the connection stays open',
  'cut-mid-json': 'the connection is closed in the middle of a JSON text',
  'cut-mid-event': 'the answer ends in the middle of an event, for HTTP as if it were whole',
  'no-done': 'a stream ends without [DONE]',
  'error-event': 'half of a stream, then an event with an error, and no [DONE]',
  '429': '429 without Retry-After',
  '429-retry-after': '429 with Retry-After: 1',
  '500': '500 with an error in OpenAI’s shape',
  '503': '503 with an error in OpenAI’s shape',
  'malformed-json': '200, and a body (or events) that is no JSON',
  'wrong-content-type': '200, and a page of HTML',
  empty: '200, and no byte of a body',
  endless: 'the answer never ends, until the client leaves',
  trickle: 'the right answer, one byte every ms',
} as const satisfies Record<string, string>;
export type FaultName = keyof typeof FAULTS;
export const FAULT_NAMES = Object.keys(FAULTS) as FaultName[];

const TRICKLE_MS = 1;

export interface PlannedFault {
  name: FaultName;
  /** How many requests it still spoils; infinite without a count. */
  left: number;
}

/** `NAME` or `NAME:N`. */
export function parseFault(text: string): PlannedFault | string {
  const [, name = '', count] = /^(.*?)(?::(\d+))?$/.exec(text) ?? [];
  if (!isFaultName(name))
    return `There is no fault ${JSON.stringify(name)}. There are: ${FAULT_NAMES.join(', ')}.`;
  const left = count === undefined ? Number.POSITIVE_INFINITY : Number(count);
  return left > 0 ? { name, left } : 'The count of a fault is 1 at least.';
}

export function isFaultName(name: unknown): name is FaultName {
  return typeof name === 'string' && Object.hasOwn(FAULTS, name);
}

/** Faults in the order in which they strike: the first that is not used up. */
export class FaultPlan {
  #faults: PlannedFault[] = [];

  set(faults: PlannedFault[]): void {
    this.#faults = faults.map((fault) => ({ ...fault }));
  }

  get current(): PlannedFault | undefined {
    return this.#faults[0];
  }

  /** The fault for the request at hand; counts it. */
  take(): FaultName | undefined {
    const fault = this.#faults[0];
    if (!fault) return undefined;
    fault.left -= 1;
    if (fault.left <= 0) this.#faults.shift();
    return fault.name;
  }

  view(): { name: FaultName; left: number | null }[] {
    return this.#faults.map(({ name, left }) => ({ name, left: Number.isFinite(left) ? left : null }));
  }
}

/** What a fault makes of the answer that would have been right. */
export function spoil(script: Script, fault: FaultName): Script {
  const half = Math.ceil(script.pieces.length / 2);
  switch (fault) {
    case 'refuse':
    case 'reset-before-headers':
      return { head: null, pieces: [], ending: 'reset' };
    case 'reset-after-headers':
      return { ...script, pieces: [], ending: 'reset' };
    case 'stall-first-byte':
      return { head: null, pieces: [], ending: 'hang' };
    case 'stall-mid-stream':
      return { ...cut(script, (text) => (isStream(script) ? 0 : text.length / 2)), ending: 'hang' };
    case 'cut-mid-json':
      return { ...cut(script, (text) => text.length / 2), ending: 'close' };
    case 'cut-mid-event':
      return withoutLength(cut(script, (text) => text.length / 2));
    case 'no-done':
      return { ...script, pieces: script.pieces.filter(({ text }) => text !== DONE_EVENT) };
    case 'error-event':
      return isStream(script)
        ? { ...script, pieces: [...script.pieces.slice(0, half), errorEvent(script.pieces[half])] }
        : errorScript(500, 'server_error', 'simulated_fault', 'The model crashed.');
    case '429':
      return errorScript(429, 'rate_limit_error', 'rate_limit_exceeded', 'Too many requests.');
    case '429-retry-after':
      return errorScript(429, 'rate_limit_error', 'rate_limit_exceeded', 'Too many requests.', {
        'retry-after': '1',
      });
    case '500':
      return errorScript(500, 'server_error', 'simulated_fault', 'The model crashed.');
    case '503':
      return errorScript(503, 'server_error', 'simulated_fault', 'The model is loading.');
    case 'malformed-json':
      return withoutLength({ ...script, pieces: script.pieces.map(malform) });
    case 'wrong-content-type':
      return html(script);
    case 'empty':
      return withoutLength({ ...script, pieces: [] });
    case 'endless':
      return endless(script);
    case 'trickle':
      return { ...script, pieces: script.pieces.flatMap(bytewise) };
  }
}

/** Half of the pieces, then what `keep` leaves of the next. */
function cut(script: Script, keep: (text: string) => number): Script {
  const half = Math.floor(script.pieces.length / 2);
  const next = script.pieces[half];
  const pieces = script.pieces.slice(0, half);
  if (next) pieces.push({ ...next, text: next.text.slice(0, Math.floor(keep(next.text))) });
  return { ...script, pieces };
}

/** An answer whose length changed, and that still ends as HTTP has it, is sent in chunks. */
function withoutLength(script: Script): Script {
  if (!script.head) return script;
  const { 'content-length': _, ...headers } = script.head.headers;
  return { ...script, head: { ...script.head, headers } };
}

function errorEvent(at: Piece | undefined): Piece {
  const error = { message: '[simulated] The model crashed.', type: 'server_error', code: 'simulated_fault' };
  return { text: dataEvent({ error }), after_tokens: at?.after_tokens ?? 0 };
}

function malform(piece: Piece): Piece {
  return piece.text === DONE_EVENT ? piece : { ...piece, text: piece.text.replace('{', '{simulated fault ') };
}

function html(script: Script): Script {
  const text = '<!doctype html><title>simulated fault</title><p>This is no answer of a model.</p>\n';
  const headers = { 'content-type': 'text/html', 'content-length': String(text.length) };
  return { head: { status: 200, headers }, pieces: [{ text, after_tokens: 0 }], ending: script.ending };
}

/** A stream repeats its last piece before the finish reason; a JSON body repeats blanks, which may stand before it. */
function endless(script: Script): Script {
  const end = script.pieces.at(-1)?.after_tokens ?? 0;
  const pieces = isStream(script)
    ? script.pieces.filter((piece, index) => index === 0 || piece.after_tokens < end)
    : [{ text: ' ', after_tokens: 0 }];
  return withoutLength({ ...script, pieces, ending: 'repeat' });
}

/** Byte by byte: a character of several bytes is torn, as a network may do. */
function bytewise(piece: Piece): Piece[] {
  const bytes = Array.from(Buffer.from(piece.text), (byte) => String.fromCharCode(byte));
  return bytes.map((text) => ({ ...piece, text, encoding: 'latin1', extra_ms: TRICKLE_MS }));
}
