import { type IdKind, makeId } from '@flotilla/protocol';

/** When it was recorded, by its own clock. */
export const RECORDED_AT = Date.parse('2026-01-01T00:00:00Z');
/** Ends that must not have come by the time it is read, however late that is. */
export const FAR_FUTURE = Date.parse('2100-01-01T00:00:00Z');

/** The n-th id of a kind, the same in each recording. */
export const recordedId = (kind: IdKind, n: number) => makeId(kind, RECORDED_AT + n, Buffer.alloc(10, n));

/** Known only because a recorded store keeps nothing but its hash. */
const secret = (prefix: string, word: string) => `${prefix}${`recorded-${word}-`.padEnd(43, 'x')}`;

/** The fleet whose store, and whose node's conversation, are recorded here. */
export const RECORDED = {
  admin: { id: recordedId('key', 1), secret: secret('flk_', 'admin') },
  /** Of whom the jobs are. */
  key: { id: recordedId('key', 2), secret: secret('flk_', 'jobs') },
  node: { id: recordedId('node', 3), name: 'attic', credential: secret('fln_', 'attic') },
  model: 'llama3',
  jobs: {
    queued: recordedId('job', 10),
    behind: recordedId('job', 11),
    backing_off: recordedId('job', 12),
    running: recordedId('job', 13),
    finished: recordedId('job', 14),
    attached: recordedId('job', 15),
  },
  /** As routes write it; the trunk itself had none that did, so this is what a job of then has in common with today's. */
  lane: '["llama3","chat",[],null]',
  idempotency: { key: 'import-42', body_hash: 'of the queued one' },
} as const;

export const requestOf = (what: string) =>
  JSON.stringify({ model: RECORDED.model, messages: [{ role: 'user', content: `the ${what} one` }] });
