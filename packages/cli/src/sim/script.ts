/**
 * An answer before it is sent: head, pieces with the moment each is due, and how the connection ends. Formats make
 * scripts, faults change them, `deliver.ts` plays them.
 */
export interface Script {
  /** Null: not even a head is sent. */
  head: { status: number; headers: Record<string, string> } | null;
  pieces: Piece[];
  ending: Ending;
}

export interface Piece {
  text: string;
  /** Tokens that have to be generated before it exists. */
  after_tokens: number;
  /** At least so long after the piece before it. */
  extra_ms?: number;
  /** `latin1`: each character is one byte. */
  encoding?: 'utf8' | 'latin1';
}

type Ending =
  /** As HTTP has it. */
  | 'end'
  /** The connection is closed (FIN) in the middle of the answer. */
  | 'close'
  /** The connection is reset (RST). */
  | 'reset'
  /** Nothing more is sent; the connection stays open until the client leaves. */
  | 'hang'
  /** The last piece again and again, until the client leaves. */
  | 'repeat';

/** A whole JSON answer, which exists when its last token does. */
export function jsonScript(
  status: number,
  value: unknown,
  tokens = 0,
  headers: Record<string, string> = {},
): Script {
  const text = JSON.stringify(value);
  return {
    head: {
      status,
      headers: {
        'content-type': 'application/json',
        'content-length': String(Buffer.byteLength(text)),
        ...headers,
      },
    },
    pieces: [{ text, after_tokens: tokens }],
    ending: 'end',
  };
}

export function streamScript(pieces: Piece[]): Script {
  return {
    head: { status: 200, headers: { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' } },
    pieces,
    ending: 'end',
  };
}

export const DONE_EVENT = 'data: [DONE]\n\n';

export function dataEvent(value: unknown): string {
  return `data: ${JSON.stringify(value)}\n\n`;
}

export function isStream(script: Script): boolean {
  return script.head?.headers['content-type'] === 'text/event-stream';
}

/** OpenAI's error shape, as real backends send it. */
export function errorScript(
  status: number,
  type: string,
  code: string,
  message: string,
  headers: Record<string, string> = {},
): Script {
  const error = { message: `[simulated] ${message}`, type, code, param: null };
  return jsonScript(status, { error }, 0, headers);
}
