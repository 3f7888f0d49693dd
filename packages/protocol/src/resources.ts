import { z } from 'zod';
import { HEALTH, labelsSchema, modelIdSchema, nodeNameSchema, operationSchema } from './descriptor.ts';
import { JOB_STATES, NODE_STATES, SCOPES } from './states.ts';

/** What the HTTP API takes and gives, area by area: the schemas behind `routes.ts`. */
const time = z.iso.datetime();
const count = z.number().int().nonnegative();
const ms = z.number().int().positive();

export const pageQuery = z.object({
  limit: z.coerce.number().int().min(1).max(500).default(50),
  /** The `next_after` of the page before. */
  after: z.string().max(256).optional(),
});
export function page<T extends z.ZodType>(item: T) {
  return z.object({ data: z.array(item), next_after: z.string().nullable() });
}
export const idParams = z.object({ id: z.string().min(1).max(128) });

// ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────────────
const keyFields = {
  name: z.string().min(1).max(128),
  scopes: z.array(z.enum(SCOPES)).min(1),
  /** Empty or absent: every model. A trailing `*` matches any ending. */
  allowed_models: z.array(modelIdSchema).max(1000),
  /** Only nodes with all of these labels serve this key. */
  node_labels: labelsSchema,
  requests_per_minute: z.number().int().positive().max(10_000_000),
  concurrency: z.number().int().positive().max(1_000_000),
  expires_at: time,
};
export const keyCreate = z.strictObject({
  name: keyFields.name,
  role: z.literal('admin').optional(),
  scopes: keyFields.scopes.default(['inference']),
  allowed_models: keyFields.allowed_models.default([]),
  node_labels: keyFields.node_labels.default({}),
  requests_per_minute: keyFields.requests_per_minute.optional(),
  concurrency: keyFields.concurrency.optional(),
  expires_at: keyFields.expires_at.optional(),
});
/** What is left out stays as it is (so no defaults here); null lifts a limit. */
export const keyUpdate = z
  .strictObject({
    ...keyFields,
    requests_per_minute: keyFields.requests_per_minute.nullable(),
    concurrency: keyFields.concurrency.nullable(),
    expires_at: keyFields.expires_at.nullable(),
  })
  .partial();
export const keyView = z
  .object({
    id: z.string(),
    name: z.string(),
    role: z.literal('admin').nullable(),
    scopes: z.array(z.enum(SCOPES)),
    allowed_models: z.array(z.string()),
    node_labels: z.record(z.string(), z.string()),
    requests_per_minute: count.nullable(),
    concurrency: count.nullable(),
    created_at: time,
    expires_at: time.nullable(),
    last_used_at: time.nullable(),
    revoked_at: time.nullable(),
  })
  .meta({ id: 'Key' });
export type KeyView = z.infer<typeof keyView>;
export const keyCreated = keyView.extend({ key: z.string() }).meta({ id: 'CreatedKey' });

// ── Enrolment tokens ────────────────────────────────────────────────────────────────────────────────────────────
export const tokenCreate = z.strictObject({
  ttl_ms: ms.max(30 * 86_400_000).default(3_600_000),
  max_uses: z.number().int().min(1).max(10_000).default(1),
  /** Put on every node enrolled with it; a node cannot drop them. */
  labels: labelsSchema.default({}),
  /** The only models that such a node may serve; empty: all. */
  allowed_models: z.array(modelIdSchema).max(1000).default([]),
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
export const tokenCreated = tokenView.extend({ token: z.string() }).meta({ id: 'CreatedEnrolmentToken' });

// ── Nodes ───────────────────────────────────────────────────────────────────────────────────────────────────────
export const enrolBody = z.object({
  token: z.string().min(1).max(256),
  name: nodeNameSchema,
  labels: labelsSchema.default({}),
});
export const enrolled = z
  .object({ id: z.string(), name: z.string(), credential: z.string() })
  .meta({ id: 'EnrolledNode' });

export const nodeView = z
  .object({
    id: z.string(),
    name: z.string(),
    state: z.enum(NODE_STATES),
    health: z.enum(HEALTH),
    cordoned: z.boolean(),
    drain: z.object({ deadline_at: time, in_flight: count }).nullable(),
    labels: z.record(z.string(), z.string()),
    region: z.string().nullable(),
    version: z.string().nullable(),
    platform: z.string().nullable(),
    allowed_models: z.array(z.string()),
    pools: z.array(
      z.object({
        id: z.string(),
        capacity: count,
        capacity_from: z.string(),
        /** Slots the control plane has given away … */
        reserved: count,
        /** … and what the node's own last beat counted; null: it has not said. */
        reported: count.nullable(),
      }),
    ),
    backends: z.array(
      z.object({
        id: z.string(),
        kind: z.string(),
        version: z.string().nullable(),
        pool: z.string(),
        health: z.enum(HEALTH),
        reason: z.string().nullable(),
        models: z.array(
          z.object({
            id: z.string(),
            operations: z.array(operationSchema),
            loaded: z.boolean().nullable(),
            health: z.enum(HEALTH),
            reason: z.string().nullable(),
            /** False: the node's allow-list keeps it from being served. */
            allowed: z.boolean(),
          }),
        ),
      }),
    ),
    epoch: count,
    created_at: time,
    connected_at: time.nullable(),
    last_seen_at: time.nullable(),
    /** Why it is in this state: facts, each a sentence's worth. */
    why: z.object({
      summary: z.string(),
      last_beat_ms_ago: count.nullable(),
      missed_beats: count,
      close_reason: z.string().nullable(),
      failing_probes: z.array(z.string()),
      warnings: z.array(z.string()),
      alarms: z.array(z.string()),
    }),
    host: z.record(z.string(), z.unknown()),
  })
  .meta({ id: 'Node' });
export type NodeView = z.infer<typeof nodeView>;
export const nodeUpdate = z.strictObject({
  labels: labelsSchema.optional(),
  allowed_models: z.array(modelIdSchema).max(1000).optional(),
});
export const drainBody = z.strictObject({
  deadline_ms: z.number().int().min(0).max(86_400_000).default(300_000),
});
export const rotateBody = z.strictObject({
  overlap_ms: z
    .number()
    .int()
    .min(0)
    .max(7 * 86_400_000)
    .default(86_400_000),
});
export const rotated = z
  .object({ id: z.string(), credential: z.string(), old_expires_at: time })
  .meta({ id: 'RotatedCredential' });

// ── Jobs ────────────────────────────────────────────────────────────────────────────────────────────────────────
export const attemptView = z.object({
  attempt: count,
  node: z.string().nullable(),
  backend: z.string().nullable(),
  outcome: z.string(),
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
    attached: z.boolean(),
    state: z.enum(JOB_STATES),
    model: z.string().nullable(),
    operation: z.string().nullable(),
    key: z.string().nullable(),
    request_id: z.string().nullable(),
    position: count.nullable(),
    attempts: z.array(attemptView),
    error: z.object({ code: z.string(), message: z.string() }).nullable(),
    created_at: time,
    finished_at: time.nullable(),
  })
  .meta({ id: 'Job' });
export type JobView = z.infer<typeof jobView>;
export const explainView = z
  .object({
    id: z.string(),
    state: z.enum(JOB_STATES),
    summary: z.string(),
    nodes: z.array(
      z.object({ node: z.string(), name: z.string(), verdict: z.string(), reasons: z.array(z.string()) }),
    ),
  })
  .meta({ id: 'Explanation' });
export type ExplainView = z.infer<typeof explainView>;
export const jobsQuery = pageQuery.extend({
  state: z.enum(JOB_STATES).optional(),
  model: modelIdSchema.optional(),
});

// ── Usage ───────────────────────────────────────────────────────────────────────────────────────────────────────
export const usageRow = z
  .object({
    job: z.string(),
    request_id: z.string().nullable(),
    key: z.string().nullable(),
    model: z.string(),
    operation: z.string(),
    node: z.string().nullable(),
    outcome: z.string(),
    status: count,
    attempts: count,
    prompt_tokens: count,
    completion_tokens: count,
    cached_tokens: count,
    estimated: z.boolean(),
    queue_ms: count,
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
  since: time.optional(),
  until: time.optional(),
};
export const usageQuery = pageQuery.extend(usageFilter);
export const usageSummaryQuery = z.object({
  ...usageFilter,
  by: z.enum(['model', 'key', 'node', 'day']).default('model'),
});
export const usageSummary = z.object({
  data: z.array(
    z.object({
      group: z.string(),
      requests: count,
      failed: count,
      prompt_tokens: count,
      completion_tokens: count,
      estimated: count,
    }),
  ),
});
export type UsageSummary = z.infer<typeof usageSummary>;

// ── OpenAI ──────────────────────────────────────────────────────────────────────────────────────────────────────
export const modelView = z
  .object({ id: z.string(), object: z.literal('model'), created: count, owned_by: z.string() })
  .meta({ id: 'Model' });
export const modelList = z.object({ object: z.literal('list'), data: z.array(modelView) });
/** Only what Flotilla reads; every other field reaches the backend as it came. */
export const inferenceBody = z
  .looseObject({
    model: modelIdSchema,
    stream: z.boolean().nullish(),
    stream_options: z.looseObject({ include_usage: z.boolean().nullish() }).nullish(),
    prompt_cache_key: z.string().nullish(),
  })
  .meta({ id: 'InferenceRequest' });
