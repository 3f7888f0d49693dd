import { z } from 'zod';
import { HEALTH, labelsSchema, modelIdSchema, nodeNameSchema, operationSchema } from './descriptor.ts';
import {
  BUDGET_PERIODS,
  DISCOVERY_REASONS,
  DISCOVERY_STAGES,
  DISCOVERY_STATES,
  JOB_STATES,
  NODE_STATES,
  SCOPES,
} from './states.ts';

/**
 * What the HTTP API takes and gives, area by area: the schemas behind `routes.ts`. What a name does not say by itself is
 * described here, once: `/openapi.json` and docs/reference/http.md are made from it.
 */
const time = z.iso.datetime();
const count = z.number().int().nonnegative();
const ms = z.number().int().positive();

export const pageQuery = z.object({
  limit: z.coerce.number().int().min(1).max(500).default(50).describe('How many at most.'),
  after: z.string().max(256).optional().describe('The `next_after` of the page before.'),
});
export function page<T extends z.ZodType>(item: T) {
  return z.object({
    data: z.array(item),
    next_after: z.string().nullable().describe('What `after` takes for the next page; null on the last.'),
  });
}
export const idParams = z.object({ id: z.string().min(1).max(128) });

// ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────────────
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

// ── Enrolment tokens ────────────────────────────────────────────────────────────────────────────────────────────
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

// ── Nodes ───────────────────────────────────────────────────────────────────────────────────────────────────────
export const enrolBody = z.object({
  token: z.string().min(1).max(256),
  name: nodeNameSchema.describe('What the node is called, unique in the fleet.'),
  labels: labelsSchema.default({}).describe('Beside those of the token, which win.'),
});
export const enrolled = z
  .object({
    id: z.string(),
    name: z.string(),
    credential: z.string().describe('What the node opens its link with, shown this once.'),
  })
  .meta({ id: 'EnrolledNode' });

export const nodeView = z
  .object({
    id: z.string(),
    name: z.string(),
    state: z.enum(NODE_STATES).describe('Whether it is there; only `online` gets work.'),
    health: z.enum(HEALTH).describe('Whether its backends work.'),
    cordoned: z.boolean().describe('It gets no new work, by the wish of an operator.'),
    drain: z
      .object({ deadline_at: time, in_flight: count })
      .nullable()
      .describe('Set while it finishes what it has.'),
    labels: z.record(z.string(), z.string()),
    region: z.string().nullable(),
    version: z.string().nullable().describe("The daemon's."),
    platform: z.string().nullable(),
    allowed_models: z.array(z.string()).describe('The only models it may serve; empty: all.'),
    pools: z
      .array(
        z.object({
          id: z.string(),
          capacity: count.describe('How many requests it takes at once.'),
          capacity_from: z.string().describe('`config`, `backend` (it says so itself) or `default`.'),
          reserved: count.describe('Slots that the control plane has given away.'),
          reported: count.nullable().describe("The same by the node's own last beat; null: it has not said."),
        }),
      )
      .describe('Slots, which the models of a backend share.'),
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
            loaded: z.boolean().nullable().describe('In memory now; null: the backend does not tell.'),
            health: z.enum(HEALTH),
            reason: z.string().nullable(),
            allowed: z.boolean().describe("False: the node's allow-list keeps it from being served."),
          }),
        ),
      }),
    ),
    journal: z
      .object({ health: z.enum(HEALTH), reason: z.string().nullable() })
      .optional()
      .describe('Of detached work, on its disk. `down`: it gets no detached work; requests go on.'),
    epoch: count.describe('Rises with every accepted connection.'),
    created_at: time,
    connected_at: time.nullable(),
    link_rtt_ms: z.number().nullable().optional().describe('Of a beat, there and back; null: not known.'),
    last_seen_at: time.nullable(),
    why: z.object({
      summary: z.string().describe('Why it is in this state, in a sentence.'),
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
  deadline_ms: z
    .number()
    .int()
    .min(0)
    .max(86_400_000)
    .default(300_000)
    .describe('What has not finished by then is moved or ended.'),
});
export const rotateBody = z.strictObject({
  overlap_ms: z
    .number()
    .int()
    .min(0)
    .max(7 * 86_400_000)
    .default(86_400_000)
    .describe('How long the old credential works beside the new one.'),
});
export const rotated = z
  .object({
    id: z.string(),
    credential: z.string().describe('The new one, shown this once.'),
    old_expires_at: time,
  })
  .meta({ id: 'RotatedCredential' });

// ── Model discovery ─────────────────────────────────────────────────────────────────────────────────────────────
export const discoverBody = z.strictObject({
  backend: z.string().min(1).max(128).optional().describe('Only this one of its backends; without it all.'),
});
export const discoveryQuery = z.object({
  wait_ms: z.coerce
    .number()
    .int()
    .min(0)
    .max(30_000)
    .default(0)
    .describe('Wait so long for it to end or to reach another stage.'),
  stage: z.enum(DISCOVERY_STAGES).optional().describe('The stage you know: any other is told at once.'),
});
const discoveredModel = z.object({
  id: z.string(),
  operations: z.array(operationSchema),
  loaded: z.boolean().nullable().describe('In memory then; null: the backend does not tell.'),
  context_length: count.nullable(),
});
const discoveryFailure = {
  reason: z.enum(DISCOVERY_REASONS).nullable().describe('Why it failed.'),
  stage: z.enum(DISCOVERY_STAGES).describe('How far it came.'),
  message: z.string().nullable().describe('Why it failed, and what to do.'),
};
export const discoveryView = z
  .object({
    id: z.string(),
    node: z.string(),
    backend: z.string().nullable().describe('Null: all of the node.'),
    state: z
      .enum(DISCOVERY_STATES)
      .describe('`completed` where every backend told its list, also one without an entry.'),
    ...discoveryFailure,
    waiting_for: z.string().nullable().describe('The backend that is waited for, while it runs.'),
    backends: z
      .array(
        z.object({
          backend: z.string(),
          kind: z.string().nullable(),
          version: z.string().nullable(),
          models: z.array(discoveredModel).nullable().describe('Null: it told no list; `reason` says why.'),
          models_total: count.nullable().describe('More than `models` has where they were too many.'),
          ...discoveryFailure,
        }),
      )
      .describe('Once it has ended: what each backend told.'),
    created_at: time,
    expires_at: time.describe('When the control plane gives it up: the only deadline there is.'),
    finished_at: time.nullable(),
  })
  .meta({ id: 'ModelDiscovery' });
export type DiscoveryView = z.infer<typeof discoveryView>;
export const nodeModelsView = z
  .object({
    node: z.string(),
    name: z.string(),
    state: z.enum(NODE_STATES),
    backends: z
      .array(
        z.object({
          backend: z.string(),
          kind: z.string(),
          version: z.string().nullable(),
          discovered_at: time.nullable().describe('When it told the list; null: it never has.'),
          age_ms: count.nullable(),
          models: z
            .array(discoveredModel.extend({ allowed: z.boolean() }))
            .nullable()
            .describe('Null: no list of it is known. `allowed` as in the node itself.'),
          models_total: count.nullable(),
        }),
      )
      .describe('The last list that each backend told when asked by a discovery, however old.'),
  })
  .meta({ id: 'NodeModels' });
export type NodeModelsView = z.infer<typeof nodeModelsView>;

// ── Jobs ────────────────────────────────────────────────────────────────────────────────────────────────────────
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

// ── Usage ───────────────────────────────────────────────────────────────────────────────────────────────────────
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

// ── Audit ───────────────────────────────────────────────────────────────────────────────────────────────────────
export const auditView = z
  .object({
    id: z.string(),
    at: time,
    action: z
      .string()
      .describe('What was done: `key.create`, `node.drain` and so on; each route says which.'),
    outcome: z.string().describe('`succeeded`, or the code of the refusal.'),
    key: z
      .string()
      .nullable()
      .describe('The id of the key that asked; null: a machine enrolled with a token.'),
    key_name: z.string().nullable().describe('What the key was called then.'),
    address: z.string().nullable().describe('Where the request came from.'),
    target: z.string().nullable().describe('The id of what was acted on.'),
    change: z.record(z.string(), z.unknown()).describe('What was asked for, without secrets.'),
    request_id: z.string(),
  })
  .meta({ id: 'Audit' });
export type AuditView = z.infer<typeof auditView>;
export const auditQuery = pageQuery.extend({
  key: z.string().max(128).optional(),
  action: z.string().max(64).optional(),
  target: z.string().max(256).optional(),
  since: time.optional().describe('From then on.'),
  until: time.optional().describe('Before then.'),
});
