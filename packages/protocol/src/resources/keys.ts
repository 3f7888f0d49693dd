import { z } from 'zod';
import { labelsSchema, modelIdSchema } from '../descriptor.ts';
import { BUDGET_PERIODS, SCOPES } from '../states.ts';
import { time, count, ms } from './fields.ts';

/** API keys and enrolment tokens. */

const TOKENS_MOST = 1_000_000_000_000_000;
const tokenBudget = z
  .strictObject({
    tokens: z.number().int().positive().max(TOKENS_MOST).describe('Of prompts and answers together.'),
    period: z
      .enum(BUDGET_PERIODS)
      .describe('In which it is counted: calendar periods in UTC, weeks from Monday; `total` is for good.'),
  })
  .meta({ id: 'TokenBudget' });
export type TokenBudget = z.infer<typeof tokenBudget>;
const keyFields = {
  name: z.string().min(1).max(128),
  scopes: z.array(z.enum(SCOPES)).min(1).describe('What it may do.'),
  allowed_models: z
    .array(modelIdSchema)
    .max(1000)
    .describe('The models it may use; empty: every one. A trailing `*` matches any ending.'),
  node_labels: labelsSchema.describe('Only nodes with all of these labels serve it.'),
  requests_per_minute: z
    .number()
    .int()
    .positive()
    .max(10_000_000)
    .describe('Requests a minute; without it no limit.'),
  concurrency: z.number().int().positive().max(1_000_000).describe('Requests at once; without it no limit.'),
  tokens_per_minute: z
    .number()
    .int()
    .positive()
    .max(TOKENS_MOST)
    .describe('Tokens a minute, of prompts and answers together; without it no limit.'),
  token_budget: tokenBudget.describe('Tokens in a period; without it no limit.'),
  expires_at: time.describe('When it stops working; without it never.'),
};
export const keyCreate = z.strictObject({
  name: keyFields.name,
  role: z.literal('admin').optional().describe('It may do everything.'),
  scopes: keyFields.scopes.default(['inference']),
  allowed_models: keyFields.allowed_models.default([]),
  node_labels: keyFields.node_labels.default({}),
  requests_per_minute: keyFields.requests_per_minute.optional(),
  concurrency: keyFields.concurrency.optional(),
  tokens_per_minute: keyFields.tokens_per_minute.optional(),
  token_budget: keyFields.token_budget.optional(),
  expires_at: keyFields.expires_at.optional(),
});
/** What is left out stays as it is (so no defaults here); null lifts a limit. */
export const keyUpdate = z
  .strictObject({
    ...keyFields,
    requests_per_minute: keyFields.requests_per_minute.nullable(),
    concurrency: keyFields.concurrency.nullable(),
    tokens_per_minute: keyFields.tokens_per_minute.nullable(),
    token_budget: keyFields.token_budget.nullable(),
    expires_at: keyFields.expires_at.nullable(),
  })
  .partial();
export const keyView = z
  .object({
    id: z.string(),
    name: z.string(),
    role: z.literal('admin').nullable().describe('`admin` may do everything.'),
    scopes: z.array(z.enum(SCOPES)),
    allowed_models: z.array(z.string()),
    node_labels: z.record(z.string(), z.string()),
    requests_per_minute: count.nullable(),
    concurrency: count.nullable(),
    tokens_per_minute: count.nullable(),
    token_budget: tokenBudget.nullable(),
    created_at: time,
    expires_at: time.nullable(),
    last_used_at: time.nullable().describe('To within a few seconds.'),
    revoked_at: time.nullable(),
  })
  .meta({ id: 'Key' });
export type KeyView = z.infer<typeof keyView>;
export const keyCreated = keyView
  .extend({ key: z.string().describe('The key itself, shown this once.') })
  .meta({ id: 'CreatedKey' });

export const tokenCreate = z.strictObject({
  ttl_ms: ms
    .max(30 * 86_400_000)
    .default(3_600_000)
    .describe('How long it works.'),
  max_uses: z.number().int().min(1).max(10_000).default(1).describe('How many machines can join with it.'),
  labels: labelsSchema.default({}).describe('Put on every node enrolled with it; a node cannot drop them.'),
  allowed_models: z
    .array(modelIdSchema)
    .max(1000)
    .default([])
    .describe('The only models that such a node may serve; empty: all.'),
});
export const tokenView = z
  .object({
    id: z.string(),
    labels: z.record(z.string(), z.string()),
    allowed_models: z.array(z.string()),
    max_uses: count,
    uses: count,
    created_at: time,
    expires_at: time,
  })
  .meta({ id: 'EnrolmentToken' });
export type TokenView = z.infer<typeof tokenView>;
export const tokenCreated = tokenView
  .extend({
    token: z.string().describe('The token itself, shown this once.'),
    public_url: z
      .string()
      .nullable()
      .describe(
        'Where the machine joins: what the control plane was told about its own address, if anything.',
      ),
  })
  .meta({ id: 'CreatedEnrolmentToken' });
