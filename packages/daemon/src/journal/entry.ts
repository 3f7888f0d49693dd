import { createHash } from 'node:crypto';
import { crc32 } from 'node:zlib';
import { controlMessageSchemas, nodeMessageSchemas } from '@flotilla/protocol';
import { z } from 'zod';
import type { JournalEntry } from '../threads.ts';

/**
 * One entry of the journal as one file: a line that says how long the rest is and what its checksum is, a line of JSON,
 * and the bytes of the answer's head and body. A file that a crash has cut short, or a disk has changed, is told by it.
 *
 *     flotilla-journal 1 <bytes that follow> <their CRC-32>\n
 *     {"node": …, "offer": …, "result": …, "answer": …}\n
 *     head body
 */
const MAGIC = 'flotilla-journal';
/** Raised where an older daemon could not read what a newer one writes. */
const VERSION = 1;

const metaSchema = z.object({
  /** Whose it is. Absent: written before it was noted, so by the node that is here. */
  node: z.string().optional(),
  offer: controlMessageSchemas['job.offer'],
  /** Null: begun, and not ended as far as is known. */
  result: z.union([nodeMessageSchemas['job.completed'], nodeMessageSchemas['job.failed']]).nullable(),
  /** Null: the result goes by itself, without a stream before it. */
  answer: z
    .object({
      head_bytes: z.number().int().nonnegative(),
      body_bytes: z.number().int().nonnegative(),
      complete: z.boolean(),
    })
    .nullable(),
});

/** In parts, so that a large answer is not copied. */
export function encodeEntry({ offer, ended }: JournalEntry, node: string): Uint8Array[] {
  const answer = ended?.answer ?? null;
  const meta: z.input<typeof metaSchema> = {
    node,
    offer,
    result: ended?.result ?? null,
    answer: answer && {
      head_bytes: answer.head.byteLength,
      body_bytes: answer.body.byteLength,
      complete: answer.complete,
    },
  };
  const parts = [Buffer.from(`${JSON.stringify(meta)}\n`), ...(answer ? [answer.head, answer.body] : [])];
  const bytes = parts.reduce((sum, part) => sum + part.byteLength, 0);
  const checksum = parts.reduce((sum, part) => crc32(part, sum), 0);
  return [Buffer.from(`${MAGIC} ${VERSION} ${bytes} ${checksum}\n`), ...parts];
}

/** @returns a sentence where it is no entry that this version can read */
export function decodeEntry(file: Buffer): { entry: JournalEntry; node?: string | undefined } | string {
  const first = file.indexOf('\n');
  const [magic, version, bytes, checksum] = file.toString('latin1', 0, Math.max(0, first)).split(' ');
  if (magic !== MAGIC) return 'it is no entry of a journal';
  if (version !== String(VERSION)) return `its format is ${version}, and this version reads ${VERSION}`;
  const rest = file.subarray(first + 1);
  if (String(rest.byteLength) !== bytes) return 'it was cut short';
  if (String(crc32(rest)) !== checksum) return 'its checksum is wrong';
  const second = rest.indexOf('\n');
  const meta = metaSchema.safeParse(parsed(rest.toString('utf8', 0, Math.max(0, second))));
  if (!meta.success) return 'it does not say what an entry says';
  const { node, offer, result, answer } = meta.data;
  if (result === null) return { entry: { offer, ended: null }, node };
  if (result.job !== offer.job || result.attempt !== offer.attempt) return 'its result is of another attempt';
  if (answer === null) return { entry: { offer, ended: { result, answer: null } }, node };
  const content = rest.subarray(second + 1);
  if (content.byteLength !== answer.head_bytes + answer.body_bytes) return 'its answer is not whole';
  const head = content.subarray(0, answer.head_bytes);
  const body = content.subarray(answer.head_bytes);
  return { entry: { offer, ended: { result, answer: { head, body, complete: answer.complete } } }, node };
}

/** Of the attempt's file. What a control plane calls a job is no path. */
export function entryName({ job, attempt }: { job: string; attempt: number }): string {
  const safe = /^[\w-]+$/.test(job) ? job : createHash('sha256').update(job).digest('hex');
  return `${safe}.${attempt}`;
}

function parsed(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}
