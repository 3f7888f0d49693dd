import { z } from 'zod';
import { HEALTH, labelsSchema, modelIdSchema, nodeNameSchema, operationSchema } from './descriptor.ts';
import { JOB_STATES, NODE_STATES, SCOPES } from './states.ts';

/**
 * Every HTTP route, once: server, SDK, commands, `/openapi.json` and the authentication test all derive from this
 * table. A route that is not in it does not exist; one that needs nothing says so with `needs: 'none'`.
 */
export const NEEDS = [
  'none',
  /** Direct loopback, or the metrics token. */
  'metrics',
  /** An enrolment token in the body. */
  'enrolment',
  /** A node's credential. */
  'node',
  /** Any API key. */
  'key',
  ...SCOPES,
  'admin',
] as const;
export type Needs = (typeof NEEDS)[number];

const time = z.iso.datetime();
const count = z.number().int().nonnegative();
const ms = z.number().int().positive();

export const pageQuery = z.object({
  limit: z.coerce.number().int().min(1).max(500).default(50),
  /** The `next_after` of the page before. */
  after: z.string().max(256).optional(),
});
function page<T extends z.ZodType>(item: T) {
  return z.object({ data: z.array(item), next_after: z.string().nullable() });
}
const idParams = z.object({ id: z.string().min(1).max(128) });

// ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────────────
export const keyCreate = z.strictObject({
  name: z.string().min(1).max(128),
  role: z.literal('admin').optional(),
  scopes: z.array(z.enum(SCOPES)).min(1).default(['inference']),
  /** Empty or absent: every model. A trailing `*` matches any ending. */
  allowed_models: z.array(modelIdSchema).max(1000).default([]),
  /** Only nodes with all of these labels serve this key. */
  node_labels: labelsSchema.default({}),
  requests_per_minute: z.number().int().positive().max(10_000_000).optional(),
  concurrency: z.number().int().positive().max(1_000_000).optional(),
  expires_at: time.optional(),
});
export const keyUpdate = keyCreate.partial().omit({ role: true });
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
const jobsQuery = pageQuery.extend({
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
const usageQuery = pageQuery.extend(usageFilter);
const usageSummaryQuery = z.object({
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

const statusView = z.object({ status: z.string() }).loose();
export const whoamiView = z.object({
  id: z.string(),
  name: z.string(),
  role: z.string().nullable(),
  scopes: z.array(z.string()),
});

export interface Route {
  method: 'GET' | 'POST' | 'PATCH' | 'DELETE';
  path: string;
  needs: Needs;
  summary: string;
  params?: z.ZodObject;
  query?: z.ZodObject;
  body?: z.ZodType;
  answer?: z.ZodType;
  status?: number;
}
const route = <const R extends Route>(definition: R): R => definition;

export const ROUTES = {
  healthz: route({
    method: 'GET',
    path: '/healthz',
    needs: 'none',
    summary: 'The process lives.',
    answer: statusView,
  }),
  readyz: route({
    method: 'GET',
    path: '/readyz',
    needs: 'none',
    summary: 'It can serve: store, migrations, bus.',
    answer: statusView,
  }),
  metrics: route({ method: 'GET', path: '/metrics', needs: 'metrics', summary: 'Prometheus metrics.' }),
  openapi: route({ method: 'GET', path: '/openapi.json', needs: 'none', summary: 'This document.' }),

  models: route({
    method: 'GET',
    path: '/v1/models',
    needs: 'inference',
    summary: 'Models that this key can use.',
    answer: modelList,
  }),
  model: route({
    method: 'GET',
    path: '/v1/models/*',
    needs: 'inference',
    summary: 'One model.',
    answer: modelView,
  }),
  chat: route({
    method: 'POST',
    path: '/v1/chat/completions',
    needs: 'inference',
    summary: 'Chat completion, streaming or not.',
    body: inferenceBody,
  }),
  completions: route({
    method: 'POST',
    path: '/v1/completions',
    needs: 'inference',
    summary: 'Text completion, streaming or not.',
    body: inferenceBody,
  }),
  embeddings: route({
    method: 'POST',
    path: '/v1/embeddings',
    needs: 'inference',
    summary: 'Embeddings.',
    body: inferenceBody,
  }),

  whoami: route({
    method: 'GET',
    path: '/api/v1/whoami',
    needs: 'key',
    summary: 'The key in use.',
    answer: whoamiView,
  }),
  listKeys: route({
    method: 'GET',
    path: '/api/v1/keys',
    needs: 'admin',
    summary: 'API keys.',
    query: pageQuery,
    answer: page(keyView),
  }),
  createKey: route({
    method: 'POST',
    path: '/api/v1/keys',
    needs: 'admin',
    summary: 'Make a key; it is shown once.',
    body: keyCreate,
    answer: keyCreated,
    status: 201,
  }),
  showKey: route({
    method: 'GET',
    path: '/api/v1/keys/:id',
    needs: 'admin',
    summary: 'One key.',
    params: idParams,
    answer: keyView,
  }),
  updateKey: route({
    method: 'PATCH',
    path: '/api/v1/keys/:id',
    needs: 'admin',
    summary: "Change a key's rights and limits.",
    params: idParams,
    body: keyUpdate,
    answer: keyView,
  }),
  revokeKey: route({
    method: 'DELETE',
    path: '/api/v1/keys/:id',
    needs: 'admin',
    summary: 'Revoke a key, everywhere within a second.',
    params: idParams,
    answer: keyView,
  }),

  listTokens: route({
    method: 'GET',
    path: '/api/v1/enrolment-tokens',
    needs: 'admin',
    summary: 'Enrolment tokens that still work.',
    query: pageQuery,
    answer: page(tokenView),
  }),
  createToken: route({
    method: 'POST',
    path: '/api/v1/enrolment-tokens',
    needs: 'admin',
    summary: 'Make a token that enrols nodes; it is shown once.',
    body: tokenCreate,
    answer: tokenCreated,
    status: 201,
  }),
  deleteToken: route({
    method: 'DELETE',
    path: '/api/v1/enrolment-tokens/:id',
    needs: 'admin',
    summary: 'Withdraw a token.',
    params: idParams,
    status: 204,
  }),

  listNodes: route({
    method: 'GET',
    path: '/api/v1/nodes',
    needs: 'nodes:read',
    summary: 'The roster.',
    query: pageQuery,
    answer: page(nodeView),
  }),
  showNode: route({
    method: 'GET',
    path: '/api/v1/nodes/:id',
    needs: 'nodes:read',
    summary: 'One node, and why it is as it is.',
    params: idParams,
    answer: nodeView,
  }),
  updateNode: route({
    method: 'PATCH',
    path: '/api/v1/nodes/:id',
    needs: 'admin',
    summary: 'Change labels or the model allow-list.',
    params: idParams,
    body: nodeUpdate,
    answer: nodeView,
  }),
  cordonNode: route({
    method: 'POST',
    path: '/api/v1/nodes/:id/cordon',
    needs: 'admin',
    summary: 'Give it no new work.',
    params: idParams,
    answer: nodeView,
  }),
  uncordonNode: route({
    method: 'POST',
    path: '/api/v1/nodes/:id/uncordon',
    needs: 'admin',
    summary: 'Give it work again; ends a drain.',
    params: idParams,
    answer: nodeView,
  }),
  drainNode: route({
    method: 'POST',
    path: '/api/v1/nodes/:id/drain',
    needs: 'admin',
    summary: 'Cordon, then finish or move what runs by the deadline.',
    params: idParams,
    body: drainBody,
    answer: nodeView,
  }),
  rotateNode: route({
    method: 'POST',
    path: '/api/v1/nodes/:id/rotate',
    needs: 'admin',
    summary: 'A new credential; the old one works through the overlap.',
    params: idParams,
    body: rotateBody,
    answer: rotated,
  }),
  revokeNode: route({
    method: 'POST',
    path: '/api/v1/nodes/:id/revoke',
    needs: 'admin',
    summary: 'Withdraw its credential at once.',
    params: idParams,
    answer: nodeView,
  }),
  deleteNode: route({
    method: 'DELETE',
    path: '/api/v1/nodes/:id',
    needs: 'admin',
    summary: 'Forget a revoked or offline node.',
    params: idParams,
    status: 204,
  }),

  listJobs: route({
    method: 'GET',
    path: '/api/v1/jobs',
    needs: 'jobs',
    summary: 'Jobs, newest first.',
    query: jobsQuery,
    answer: page(jobView),
  }),
  showJob: route({
    method: 'GET',
    path: '/api/v1/jobs/:id',
    needs: 'jobs',
    summary: 'One job with its attempts.',
    params: idParams,
    answer: jobView,
  }),
  explainJob: route({
    method: 'GET',
    path: '/api/v1/jobs/:id/explain',
    needs: 'jobs',
    summary: 'Every node with its verdict on this job.',
    params: idParams,
    answer: explainView,
  }),
  cancelJob: route({
    method: 'POST',
    path: '/api/v1/jobs/:id/cancel',
    needs: 'jobs',
    summary: 'Cancel an open job.',
    params: idParams,
    answer: jobView,
  }),

  usage: route({
    method: 'GET',
    path: '/api/v1/usage',
    needs: 'key',
    summary: 'Settled requests, newest first; own ones without admin.',
    query: usageQuery,
    answer: page(usageRow),
  }),
  usageSummary: route({
    method: 'GET',
    path: '/api/v1/usage/summary',
    needs: 'key',
    summary: 'Usage added up.',
    query: usageSummaryQuery,
    answer: usageSummary,
  }),

  enrol: route({
    method: 'POST',
    path: '/node/v1/enrol',
    needs: 'enrolment',
    summary: "Exchange an enrolment token for the node's own credential.",
    body: enrolBody,
    answer: enrolled,
    status: 201,
  }),
  link: route({ method: 'GET', path: '/node/v1/link', needs: 'node', summary: 'The node link (WebSocket).' }),
} as const satisfies Record<string, Route>;
export type RouteName = keyof typeof ROUTES;
