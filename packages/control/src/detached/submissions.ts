import { createHash } from 'node:crypto';
import { type ByteRange, addMember, arrayElements, replaceMember, topLevelMember } from '@flotilla/core';
import { FlotillaError, idempotencyKeySchema, jobBatch, jobCreate, jobInBatch } from '@flotilla/protocol';
import type { z } from 'zod';
import type { Principal } from '../accounts/principal.ts';
import { readInferenceRequest } from '../gateway/inference-request.ts';
import { read, readShape } from '../http/routing.ts';
import type { Submission } from './detached.ts';

/**
 * Submissions out of a body's bytes. The envelope is read and checked; the request in it is cut out as it came, so that
 * its numbers and spelling reach the backend, with at most the model's name put in.
 */
export interface SubmissionRules {
  /** The model that a name stands for. @throws FlotillaError `model_not_found` */
  permittedModel(asked: string, principal: Principal): string;
  queue_timeout_ms: number;
  run_timeout_ms: number;
  retention_ms: number;
}

interface Asked {
  principal: Principal;
  request_id: string;
  /** The client's trace. */
  traceparent: string | null;
}

type Envelope = z.output<typeof jobCreate> & { idempotency_key?: string | undefined };

export function readSubmission(
  rules: SubmissionRules,
  asked: Asked,
  body: Uint8Array,
  idempotency_key: string | undefined,
): Submission {
  const envelope = readEnvelope(jobCreate, parse(body));
  const key = idempotency_key === undefined ? undefined : readKey(idempotency_key);
  return submission(rules, asked, { ...envelope, idempotency_key: key }, body);
}

/**
 * One for each element: gives what was asked, or throws why it cannot be, which concerns no other.
 * @throws FlotillaError `invalid_request` where the whole is no batch
 */
export function readBatch(rules: SubmissionRules, asked: Asked, body: Uint8Array): (() => Submission)[] {
  const batch = parse(body);
  refuseProto(batch, '');
  const { jobs } = readShape(jobBatch, batch, 'body') as z.output<typeof jobBatch>;
  const list = cut(body, topLevelMember(body, 'jobs'));
  return arrayElements(list).map(
    (range, place) => () => submission(rules, asked, readEnvelope(jobInBatch, jobs[place]), cut(list, range)),
  );
}

function readEnvelope(schema: typeof jobCreate | typeof jobInBatch, value: unknown): Envelope {
  refuseProto(value, '');
  const envelope = read(schema, value, 'body') as Envelope;
  // Its own record has lost such a field by now.
  refuseProto((value as { metadata?: unknown }).metadata, 'metadata.');
  return envelope;
}

/** Schemas pass over a field of this name in silence. In the request itself it is the backend's matter. */
function refuseProto(value: unknown, path: string): void {
  if (typeof value !== 'object' || value === null || !Object.hasOwn(value, '__proto__')) return;
  throw new FlotillaError('invalid_request', 'No field is called __proto__.', { param: `${path}__proto__` });
}

function submission(rules: SubmissionRules, asked: Asked, envelope: Envelope, body: Uint8Array): Submission {
  const { model: named, operation, priority, metadata, request: fields, idempotency_key } = envelope;
  if (fields.stream === true) {
    throw new FlotillaError(
      'invalid_request',
      'Nobody waits for the pieces of a detached job: leave `stream` out of its request, and read its result when it has ended.',
      { param: 'request.stream' },
    );
  }
  if (fields.model !== undefined && fields.model !== named) {
    throw new FlotillaError('invalid_request', '`request.model` is another one than `model`: leave it out.', {
      param: 'request.model',
    });
  }
  const model = rules.permittedModel(named, asked.principal);
  const request = withModel(cut(body, topLevelMember(body, 'request')), fields.model !== undefined, model);
  const { size } = readInferenceRequest(request, operation, {});
  return {
    ...asked,
    size,
    model,
    operation,
    request: Buffer.from(request.buffer, request.byteOffset, request.byteLength).toString(),
    priority,
    metadata,
    queue_timeout_ms: envelope.queue_timeout_ms ?? rules.queue_timeout_ms,
    run_timeout_ms: envelope.run_timeout_ms ?? rules.run_timeout_ms,
    retention_ms: envelope.retention_ms ?? rules.retention_ms,
    idempotency: idempotency_key === undefined ? null : { key: idempotency_key, body_hash: hash(body) },
  };
}

function withModel(request: Uint8Array, has_one: boolean, model: string): Uint8Array {
  const name = Buffer.from(JSON.stringify(model));
  return has_one ? replaceMember(request, 'model', name) : addMember(request, 'model', name);
}

function readKey(given: string): string {
  const key = idempotencyKeySchema.safeParse(given);
  if (key.success) return key.data;
  throw new FlotillaError(
    'invalid_request',
    `The Idempotency-Key header is ${key.error.issues[0]!.message}.`,
  );
}

function parse(body: Uint8Array): unknown {
  try {
    return JSON.parse(decoder.decode(body));
  } catch {
    throw new FlotillaError('invalid_request', 'The body is not valid JSON.');
  }
}

/** Invalid UTF-8 is refused, not replaced: another text would be stored than was sent. */
const decoder = new TextDecoder('utf-8', { fatal: true });

function cut(bytes: Uint8Array, range: ByteRange | undefined): Uint8Array {
  if (range === undefined) throw new FlotillaError('invalid_request', 'A field that is needed is missing.');
  return bytes.subarray(range.start, range.end);
}

function hash(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
