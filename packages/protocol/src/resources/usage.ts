import { z } from 'zod';
import { modelIdSchema } from '../descriptor.ts';
import { BUDGET_PERIODS } from '../states.ts';
import { time, count } from './fields.ts';
import { pageQuery } from './paging.ts';

/** Usage, and what is left of limits. */

export const usageRow = z
  .object({
    job: z.string(),
    request_id: z.string().nullable(),
    key: z.string().nullable(),
    model: z.string(),
    operation: z.string(),
    node: z.string().nullable(),
    provider: z.string().nullable().describe('The id of the upstream API that served, if it was no node.'),
    outcome: z.string().describe('`succeeded`, or the code of the error.'),
    status: count.describe('The HTTP status that the client got, or would have got.'),
    attempts: count.describe('How many attempts it took.'),
    prompt_tokens: count,
    completion_tokens: count,
    cached_tokens: count.describe('Of the prompt, those that the backend had in its cache.'),
    estimated: z.boolean().describe('The backend told no count; this one is derived from lengths.'),
    queue_ms: count.describe('How long it waited for a slot.'),
    first_byte_ms: count.nullable(),
    total_ms: count,
    created_at: time,
  })
  .meta({ id: 'Usage' });
export type UsageRow = z.infer<typeof usageRow>;
const usageFilter = {
  key: z.string().max(128).optional(),
  model: modelIdSchema.optional(),
  node: z.string().max(128).optional(),
  provider: z.string().max(128).optional(),
  since: time.optional().describe('From then on.'),
  until: time.optional().describe('Before then.'),
};
export const usageQuery = pageQuery.extend(usageFilter);
export const usageSummaryQuery = z.object({
  ...usageFilter,
  by: z
    .enum(['model', 'key', 'node', 'provider', 'day'])
    .default('model')
    .describe('What is added up together.'),
});
export const usageSummary = z.object({
  data: z.array(
    z.object({
      group: z.string().describe('The model, the id of the key, node or provider, or the day.'),
      requests: count,
      failed: count,
      prompt_tokens: count,
      completion_tokens: count,
      estimated: count.describe('Requests whose tokens are an estimate.'),
    }),
  ),
});
export type UsageSummary = z.infer<typeof usageSummary>;
export const limitsQuery = z.object({
  key: z
    .string()
    .max(128)
    .optional()
    .describe('The id of another key, for an admin; without it the one in use.'),
});
const rateLeft = z.object({
  limit: count.describe('How many a minute.'),
  remaining: count,
  reset_ms: count.describe('How long until all of it is there again.'),
});
export const limitsView = z
  .object({
    key: z.string(),
    requests: rateLeft.nullable().describe('null here and below: no such limit.'),
    tokens: rateLeft.nullable(),
    concurrency: z.object({ limit: count, in_use: count }).nullable(),
    budget: z
      .object({
        tokens: count,
        period: z.enum(BUDGET_PERIODS),
        used: count.describe('By requests that have ended.'),
        reserved: count.describe('For requests under way: what they may cost.'),
        remaining: count,
        period_started_at: time.nullable().describe('null: it is counted from the first request on.'),
        renews_at: time.nullable().describe('null: never.'),
      })
      .nullable(),
  })
  .meta({ id: 'Limits' });
export type LimitsView = z.infer<typeof limitsView>;
