import { type RequestSize, replaceMember, requestSize } from '@flotilla/core';
import { FlotillaError, type Operation } from '@flotilla/protocol';

/**
 * What the gateway needs to know of a request. The body is parsed once, for this; what travels is the bytes as they
 * came, in which at most the model's name is replaced.
 */
export interface InferenceRequest {
  readonly model: string;
  readonly streaming: boolean;
  /** The client left `stream_options.include_usage` open. */
  readonly add_usage: boolean;
  readonly affinity: string | null;
  /** What it may cost. */
  readonly size: RequestSize;
}

const AFFINITY_HEADER = 'x-session-affinity';
const TEXT_MOST = 256;

/**
 * @throws FlotillaError `invalid_request` with the `param` at fault
 */
export function readInferenceRequest(
  body: Uint8Array,
  operation: Operation,
  headers: Record<string, string | string[] | undefined>,
): InferenceRequest {
  const fields = parse(body);
  const { model, stream, stream_options } = fields;
  if (typeof model !== 'string' || model.length === 0 || model.length > TEXT_MOST) {
    throw new FlotillaError(
      'invalid_request',
      '`model` must be the name of a model; GET /v1/models lists them.',
      {
        param: 'model',
      },
    );
  }
  if (stream !== undefined && stream !== null && typeof stream !== 'boolean') {
    throw new FlotillaError('invalid_request', '`stream` must be true or false.', { param: 'stream' });
  }
  if (stream_options !== undefined && stream_options !== null && !isObject(stream_options)) {
    throw new FlotillaError('invalid_request', '`stream_options` must be an object.', {
      param: 'stream_options',
    });
  }
  if (operation === 'chat' && !Array.isArray(fields['messages'])) {
    throw new FlotillaError('invalid_request', '`messages` must be a list.', { param: 'messages' });
  }
  const streaming = stream === true && operation !== 'embeddings';
  const asked = isObject(stream_options) ? stream_options['include_usage'] : undefined;
  return {
    model,
    streaming,
    add_usage: streaming && (asked === undefined || asked === null),
    affinity: affinityOf(fields['prompt_cache_key'], headers[AFFINITY_HEADER]),
    size: requestSize(fields, body.byteLength, operation),
  };
}

/** The same body under the model's full name. */
export function withModel(body: Uint8Array, model: string): Uint8Array {
  return replaceMember(body, 'model', Buffer.from(JSON.stringify(model)));
}

function parse(
  body: Uint8Array,
): Record<string, unknown> & { model?: unknown; stream?: unknown; stream_options?: unknown } {
  let value: unknown;
  try {
    value = JSON.parse(decoder.decode(body));
  } catch {
    throw new FlotillaError('invalid_request', 'The body is not valid JSON.');
  }
  if (!isObject(value)) throw new FlotillaError('invalid_request', 'The body must be a JSON object.');
  return value;
}

/** Invalid UTF-8 is refused, not replaced: the backend would read other text than we do. */
const decoder = new TextDecoder('utf-8', { fatal: true });

function affinityOf(cache_key: unknown, header: string | string[] | undefined): string | null {
  for (const value of [cache_key, header]) {
    if (typeof value === 'string' && value.length > 0 && value.length <= TEXT_MOST) return value;
  }
  return null;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
