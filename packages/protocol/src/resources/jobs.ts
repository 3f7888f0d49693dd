import { z } from 'zod';
import { modelIdSchema, operationSchema } from '../descriptor.ts';
import { JOB_STATES } from '../states.ts';
import { time, count } from './fields.ts';
import { pageQuery } from './paging.ts';

/** Jobs, attached and detached. */

export const attemptView = z.object({
  attempt: count,
  node: z.string().nullable(),
  provider: z.string().nullable().describe('The id of the upstream API, where it was one that was asked.'),
  backend: z.string().nullable(),
  outcome: z.string().describe('`open` while it runs; then `succeeded`, or what ended it.'),
  code: z.string().nullable(),
  message: z.string().nullable(),
  offered_at: time,
  started_at: time.nullable(),
  ended_at: time.nullable(),
});
export const jobView = z
  .object({
    id: z.string(),
    kind: z.enum(['inference', 'agent', 'discovery']),
    attached: z.boolean().describe('A client waits for it on a connection.'),
    state: z.enum(JOB_STATES),
    model: z.string().nullable(),
    operation: z.string().nullable(),
    key: z.string().nullable().describe('The id of the key that asked.'),
    request_id: z.string().nullable(),
    position: count.nullable().describe('How many go before it, while it waits.'),
    attempts: z.array(attemptView),
    error: z.object({ code: z.string(), message: z.string() }).nullable(),
    created_at: time,
    finished_at: time.nullable(),
    priority: z.number().int().optional().describe('Of a detached job.'),
    metadata: z.record(z.string(), z.unknown()).optional().describe('Of a detached job, as it was sent.'),
    deadline_at: time.nullable().optional().describe('When its present wait, or its run, is timed out.'),
    bodies_kept_until: time
      .nullable()
      .optional()
      .describe('When request and result are erased; null: the job is open, or they are.'),
    result: z
      .unknown()
      .optional()
      .describe('The answer of the backend, digit for digit; null: none yet, or erased. Not in lists.'),
  })
  .meta({ id: 'Job' });
export type JobView = z.infer<typeof jobView>;
const DAY_MS = 86_400_000;
/** What a number does not hold was rounded when it was read: kept so, it would be another one than was sent. */
const metadataValue = z
  .union([z.string().max(1024), z.number(), z.boolean(), z.null()])
  .refine(
    (value) => typeof value !== 'number' || !Number.isInteger(value) || Number.isSafeInteger(value),
    'a whole number beyond 2^53 would be rounded: send it as text',
  );
const jobFields = {
  kind: z.literal('inference').default('inference'),
  model: modelIdSchema,
  operation: operationSchema.default('chat'),
  request: z
    .looseObject({ model: modelIdSchema.optional(), stream: z.boolean().nullish() })
    .describe(
      'The body of the request, as the backend is to get it; `stream` is not for work that nobody waits for.',
    ),
  priority: z
    .number()
    .int()
    .min(-10)
    .max(10)
    .default(0)
    .describe('Larger goes first: a step is worth a minute.'),
  queue_timeout_ms: z
    .number()
    .int()
    .min(1)
    .max(30 * DAY_MS)
    .optional()
    .describe('How long it waits for a slot.'),
  run_timeout_ms: z.number().int().min(1).max(DAY_MS).optional().describe('How long it may run.'),
  retention_ms: z
    .number()
    .int()
    .min(0)
    .max(365 * DAY_MS)
    .optional()
    .describe('How long request and result are kept after its end.'),
  metadata: z
    .record(z.string().max(64), metadataValue)
    .refine((fields) => Object.keys(fields).length <= 32, 'at most 32 fields')
    .default({}),
};
export const idempotencyKeySchema = z
  .string()
  .regex(/^[\x21-\x7e]{1,255}$/, '1 to 255 characters of printable ASCII, without spaces');
export const jobCreate = z.strictObject(jobFields).meta({ id: 'JobCreate' });
export type JobCreate = z.input<typeof jobCreate>;
export const jobAccepted = z
  .object({
    id: z.string(),
    state: z.enum(JOB_STATES),
    existing: z
      .boolean()
      .describe('The same Idempotency-Key came with the same body before: this is that job.'),
  })
  .meta({ id: 'JobAccepted' });
export type JobAccepted = z.infer<typeof jobAccepted>;
export const JOBS_IN_BATCH = 1000;
export const jobInBatch = z.strictObject({ ...jobFields, idempotency_key: idempotencyKeySchema.optional() });
export const jobBatch = z
  .strictObject({ jobs: z.array(z.unknown()).min(1).max(JOBS_IN_BATCH) })
  .meta({ id: 'JobBatch' });
export const jobBatchVerdicts = z
  .object({
    data: z
      .array(
        z.union([
          jobAccepted,
          z.object({
            error: z.object({ code: z.string(), message: z.string(), param: z.string().nullable() }),
          }),
        ]),
      )
      .describe('One for each job, in their order: it was accepted, or why not.'),
  })
  .meta({ id: 'JobVerdicts' });
export type JobBatchVerdicts = z.infer<typeof jobBatchVerdicts>;
export const explainView = z
  .object({
    id: z.string(),
    state: z.enum(JOB_STATES),
    summary: z.string(),
    nodes: z.array(
      z.object({
        node: z.string(),
        name: z.string(),
        verdict: z.string().describe('`has it`, `could take it`, or the first reason why not.'),
        reasons: z.array(z.string()).describe('Why not, one for each backend with the model.'),
      }),
    ),
  })
  .meta({ id: 'Explanation' });
export type ExplainView = z.infer<typeof explainView>;
export const jobsQuery = pageQuery.extend({
  state: z.enum(JOB_STATES).optional(),
  model: modelIdSchema.optional(),
});
