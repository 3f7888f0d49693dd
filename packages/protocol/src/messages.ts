import { z } from 'zod';
import { HEALTH, modelSchema, operationSchema } from './descriptor.ts';
import { DISCOVERY_REASONS, DISCOVERY_STAGES } from './states.ts';

/**
 * The JSON text frames of the node link, protocol 1. Readers ignore fields they do not know; a message type they do
 * not know is answered by an `error` with the message's `id`, and the link lives on.
 *
 * A life of one attempt, node on the right:
 *
 *     job.offer + request body  ─▶
 *                               ◀─ job.started                (or job.accepted first, or job.rejected)
 *                               ◀─ head, body … end           binary frames
 *                               ◀─ job.completed | job.failed
 *     result.ack                ─▶
 *
 * `job.started` implies acceptance, so a node that starts at once sends it alone.
 */
export const PROTOCOL_VERSION = 1;

/** The `owner` of an attempt whose job was acknowledged with 202; any other owner is a replica, which has the client. */
export const STORE_OWNER = 'store';

const id = z.string().min(1).max(128);
const count = z.number().int().nonnegative();
const duration_ms = z.number().nonnegative();
/** `(job, attempt)`: with the connection's node and epoch it is the fence of an attempt. */
const attempt = { job: id, attempt: z.number().int().positive() };
/** Text for people; long ones are cut rather than refused. */
const reason = z.string().transform((text) => text.slice(0, 1000));

export const inventoryItemSchema = z.object({
  ...attempt,
  owner: id.optional(),
  /** Whose pool its slot is in. */
  backend: id.optional(),
  /** `receiving`: the request body is not whole yet. */
  state: z.enum(['receiving', 'running', 'finished', 'released']),
  /** Request body bytes the node has. */
  body_offset: count.default(0),
  /** Response body bytes the node has produced so far. */
  stream_offset: count.default(0),
});
export type InventoryItem = z.infer<typeof inventoryItemSchema>;

export const verdictSchema = z.object({
  ...attempt,
  verdict: z.enum(['keep', 'wait', 'abandon']),
  /** With `keep`: the attempt's stream on this connection … */
  stream: count.optional(),
  /** … and where the node sends its response body again from … */
  acked_offset: count.optional(),
  /** … having been sent the head already. */
  head_received: z.boolean().optional(),
});
export type Verdict = z.infer<typeof verdictSchema>;

const inventory = z.array(z.unknown()).max(10_000);

/** Item by item: one that cannot be read, or is of a state to come, does not cost the node the others. */
export function readInventory(items: readonly unknown[]): InventoryItem[] {
  return items.flatMap((item) => inventoryItemSchema.safeParse(item).data ?? []);
}

const desired = z.object({
  cordoned: z.boolean().default(false),
  /** Time left for a drain; absent when none is wanted. */
  drain_ms: duration_ms.optional(),
});
export type Desired = z.infer<typeof desired>;

const backendHealth = z.object({
  id,
  health: z.enum(HEALTH),
  reason: reason.optional(),
  /** Models whose health differs from the backend's. */
  models: z.array(z.object({ id, health: z.enum(HEALTH), reason: reason.optional() })).default([]),
});
export type BackendHealth = z.infer<typeof backendHealth>;

/** Whether what is detached can be written down, so that it outlives the daemon. Not said: it is taken for able. */
const journalHealth = z.object({
  health: z.enum(HEALTH),
  /** What is wrong, and what to do. */
  reason: reason.optional(),
});
export type JournalHealth = z.infer<typeof journalHealth>;

/** More than any request has. What says more does not count: a few of them would be beyond the integers of the books. */
export const TOKENS_MAX = 1_000_000_000;
const tokens = count.max(TOKENS_MAX).default(0);

export const usageSchema = z.object({
  prompt_tokens: tokens,
  completion_tokens: tokens,
  cached_tokens: tokens,
  /** True when the backend told no count and the node derived one from lengths. */
  estimated: z.boolean(),
});
export type TokenUsage = z.infer<typeof usageSchema>;

/** What a node can be asked beyond protocol 1: it says so when it registers, and is asked nothing that it did not say. */
export const NODE_FEATURES = {
  modelDiscovery: 'model_discovery',
  /** Detached work has a lease of its own, which an acknowledgement of a beat may leave as it is. */
  detachedLease: 'detached_lease',
} as const;

/** A request for the models of one backend, or of all: the same wherever it travels, and asked as often as need be. */
const discovery = {
  request: id,
  /** Absent: all of them. */
  backend: id.optional(),
  /** Time left until the control plane gives it up. */
  left_ms: duration_ms.max(86_400_000),
};
const discoveryRequest = z.object(discovery);
export type DiscoveryRequest = z.infer<typeof discoveryRequest>;

/** Model by model: one that cannot be read does not cost the others; `models_total` says that there was one more. */
const models = z
  .array(z.unknown())
  .max(2000)
  .transform((items) => items.flatMap((item) => modelSchema.safeParse(item).data ?? []));

/** What one backend told: its list, or why there is none. A list that cannot be read is a failure, never an empty one. */
const backendTold = z.discriminatedUnion('outcome', [
  z.object({
    outcome: z.literal('listed'),
    backend: id,
    kind: z.string().max(128),
    version: z.string().max(128).optional().catch(undefined),
    models,
    /** More than `models` has, where not all fit into one message. */
    models_total: count,
  }),
  z.object({
    outcome: z.literal('failed'),
    backend: id,
    reason: z.enum(DISCOVERY_REASONS).catch('backend_down'),
    stage: z.enum(DISCOVERY_STAGES).catch('claimed'),
    /** What the node saw, for people. */
    detail: reason.optional(),
  }),
]);
export type BackendTold = z.infer<typeof backendTold>;

/** Node → control plane. */
export const nodeMessageSchemas = {
  'node.register': z.object({
    type: z.literal('node.register'),
    id: id.optional().catch(undefined),
    boot_id: id,
    /** Of this process's last link; absent: it has had none. */
    epoch: count.optional().catch(undefined),
    protocol: z.object({ min: count, max: count }),
    features: z.array(z.string()).default([]).catch([]),
    /** Read apart, leniently: see `readDescriptor`. */
    descriptor: z.unknown(),
    descriptor_hash: z.string().max(128).default('').catch(''),
    inventory: inventory.default([]).transform(readInventory),
    /** Beats' health of the backends, so that a node is placeable from its first moment. */
    backends: z.array(backendHealth).max(256).default([]).catch([]),
    journal: journalHealth.optional().catch(undefined),
  }),
  'node.heartbeat': z.object({
    type: z.literal('node.heartbeat'),
    // Only the number is needed: whatever else cannot be read never costs the node its liveness.
    id: id.optional().catch(undefined),
    seq: count,
    descriptor_hash: z.string().max(128).default('').catch(''),
    pools: z
      .array(z.object({ id, in_flight: count, capacity: count }))
      .max(257)
      .default([])
      .catch([]),
    leases_digest: z.string().max(64).default('').catch(''),
    backends: z.array(backendHealth).max(256).default([]).catch([]),
    /** While it is `down` the node is given no detached work. */
    journal: journalHealth.optional().catch(undefined),
    /** A few flat facts of the machine, for people. */
    host: z
      .record(z.string().max(64), z.union([z.number(), z.boolean(), z.string().max(256), z.null()]))
      .default({})
      .catch({}),
    /** Rises while the daemon's main thread works; standing still for 2 H makes the node degraded. */
    progress_seq: count.default(0).catch(0),
    /** The daemon is stopping: it finishes what it has and takes no more. */
    draining: z.boolean().default(false).catch(false),
    /** Round trip of the last acknowledged beat; sizes the other side's connection window. */
    rtt_ms: duration_ms.optional().catch(undefined),
  }),
  'descriptor.update': z.object({
    type: z.literal('descriptor.update'),
    id: id.optional(),
    descriptor: z.unknown(),
    descriptor_hash: z.string().max(128).default(''),
  }),
  'inventory.sync': z.object({
    type: z.literal('inventory.sync'),
    id: id.optional(),
    /** For `readInventory`: thousands of items take their time, which not every such message is worth. */
    inventory,
  }),
  'job.accepted': z.object({ type: z.literal('job.accepted'), id: id.optional(), ...attempt }),
  'job.rejected': z.object({ type: z.literal('job.rejected'), id: id.optional(), ...attempt, reason }),
  'job.started': z.object({ type: z.literal('job.started'), id: id.optional(), ...attempt }),
  'job.progress': z.object({
    type: z.literal('job.progress'),
    id: id.optional(),
    ...attempt,
    progress: z.record(z.string(), z.unknown()).default({}),
  }),
  'job.completed': z.object({
    type: z.literal('job.completed'),
    id: id.optional(),
    ...attempt,
    /** What the backend answered: its status and its body's length. */
    result: z.object({ status: count, length: count }),
    usage: usageSchema,
    /** The backend's own time to its first body byte, and to its last. What is unreadable of extras costs no result. */
    first_byte_ms: duration_ms.optional().catch(undefined),
    total_ms: duration_ms.optional().catch(undefined),
  }),
  'job.failed': z.object({
    type: z.literal('job.failed'),
    id: id.optional(),
    ...attempt,
    code: z.string().max(64),
    message: reason,
    /** Whether another node may succeed. */
    retryable: z.boolean(),
    /** The backend's HTTP status, where it gave one. */
    status: count.optional().catch(undefined),
    retry_after_ms: duration_ms.optional().catch(undefined),
    /** What was produced before the failure. */
    usage: usageSchema.optional().catch(undefined),
  }),
  'job.released': z.object({
    type: z.literal('job.released'),
    id: id.optional(),
    ...attempt,
    /** Whether the backend had been asked before the release. */
    started: z.boolean(),
    usage: usageSchema.optional().catch(undefined),
  }),
  /** The first one takes the request; each says how far it is. */
  'discovery.progress': z.object({
    type: z.literal('discovery.progress'),
    id: id.optional(),
    request: id,
    stage: z.enum(DISCOVERY_STAGES),
    /** The backend that is waited for, of several the one that is least far. */
    backend: id.optional(),
  }),
  'discovery.result': z.object({
    type: z.literal('discovery.result'),
    id: id.optional(),
    request: id,
    results: z.array(backendTold).max(256),
  }),
  'stream.credit': z.object({ type: z.literal('stream.credit'), stream: count, acked_offset: count }),
  'link.ack': z.object({ type: z.literal('link.ack'), received: count }),
  'node.deregister': z.object({
    type: z.literal('node.deregister'),
    id: id.optional(),
    reason: reason.default('stopping'),
  }),
  error: z.object({
    type: z.literal('error'),
    id: id.optional(),
    code: z.string().max(64),
    message: reason,
  }),
} as const;

/** Control plane → node. */
export const controlMessageSchemas = {
  'node.registered': z.object({
    type: z.literal('node.registered'),
    id: id.optional(),
    node_id: id,
    name: z.string(),
    epoch: count,
    server_time: z.string(),
    /** What a control plane can be set to: timers of nothing would burn a node, timers of ages overflow. */
    heartbeat_ms: z.number().min(50).max(600_000),
    lease_ttl_ms: z.number().positive(),
    protocol: count,
    verdicts: z.array(verdictSchema).default([]),
    desired: desired.default({ cordoned: false }),
    warnings: z.array(z.string()).default([]),
  }),
  'node.heartbeat.ack': z.object({
    type: z.literal('node.heartbeat.ack'),
    seq: count,
    server_time: z.string(),
    epoch: count,
    /** `attached`: the lease of detached work goes on as it was, since the sender cannot reach its store. */
    renews: z.enum(['all', 'attached']).optional().catch(undefined),
    desired: desired.default({ cordoned: false }),
    want: z.array(z.string()).default([]),
    warnings: z.array(z.string()).default([]),
    /** Requests for models that are open: what was pushed and lost, or answered and lost, is found here again. */
    discoveries: z.array(discoveryRequest).max(64).default([]).catch([]),
  }),
  'inventory.verdicts': z.object({
    type: z.literal('inventory.verdicts'),
    verdicts: z.array(verdictSchema),
  }),
  'job.offer': z.object({
    type: z.literal('job.offer'),
    ...attempt,
    owner: id,
    stream: count,
    kind: z.enum(['inference', 'agent', 'discovery']),
    operation: operationSchema,
    /** The backend on this node that serves it, and the model's name there. */
    backend: id,
    model: z.string(),
    /** Whether the client asked for an event stream. */
    streaming: z.boolean(),
    /** The client left `stream_options.include_usage` open: ask for usage, and keep it from the client. */
    add_usage: z.boolean().default(false),
    body_length: count,
    /** Time left, not points in time: no clock of two machines is ever compared. */
    deadlines: z.object({
      run_ms: duration_ms,
      first_byte_ms: duration_ms,
      idle_ms: duration_ms,
    }),
    request_id: z.string().max(128).default(''),
    /** The client's W3C trace context, for the backend; absent: it sent none. */
    traceparent: z.string().max(128).optional(),
  }),
  'job.cancel': z.object({ type: z.literal('job.cancel'), ...attempt }),
  'job.abandon': z.object({ type: z.literal('job.abandon'), ...attempt, reason }),
  'result.ack': z.object({
    type: z.literal('result.ack'),
    ...attempt,
    outcome: z.enum(['accepted', 'duplicate', 'stale', 'conflict']),
  }),
  'discovery.request': z.object({ type: z.literal('discovery.request'), ...discovery }),
  /** Ends the node's memory of the request. */
  'discovery.ack': z.object({
    type: z.literal('discovery.ack'),
    request: id,
    outcome: z.enum(['accepted', 'duplicate', 'stale']),
  }),
  'stream.credit': nodeMessageSchemas['stream.credit'],
  'link.ack': nodeMessageSchemas['link.ack'],
  error: nodeMessageSchemas.error,
} as const;

export type NodeMessage = {
  [T in keyof typeof nodeMessageSchemas]: z.infer<(typeof nodeMessageSchemas)[T]>;
}[keyof typeof nodeMessageSchemas];
export type ControlMessage = {
  [T in keyof typeof controlMessageSchemas]: z.infer<(typeof controlMessageSchemas)[T]>;
}[keyof typeof controlMessageSchemas];
export type NodeMessageOf<T extends NodeMessage['type']> = Extract<NodeMessage, { type: T }>;
export type ControlMessageOf<T extends ControlMessage['type']> = Extract<ControlMessage, { type: T }>;

/** What a reader makes of a text frame: the message, or the `error` to answer it with. */
export type ReadMessage<M> =
  | { ok: true; message: M }
  | {
      ok: false;
      error: NodeMessageOf<'error'>;
      /** It is well formed, of a type that this side does not know: a newer peer, not a broken one. */
      unknown_type: boolean;
    };

function reader<M>(schemas: Record<string, z.ZodType>) {
  return (text: string): ReadMessage<M> => {
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      return refuse(undefined, 'The text frame is not JSON.');
    }
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      return refuse(undefined, 'A message is a JSON object with a `type`.');
    }
    const { type, id: messageId } = value as { type?: unknown; id?: unknown };
    const echo = typeof messageId === 'string' ? messageId.slice(0, 128) : undefined;
    if (typeof type !== 'string' || !Object.hasOwn(schemas, type)) {
      const refused = refuse(echo, `Unknown message type ${JSON.stringify(type)?.slice(0, 64)}.`);
      return { ...refused, unknown_type: typeof type === 'string' };
    }
    const parsed = schemas[type]!.safeParse(value);
    if (parsed.success) return { ok: true, message: parsed.data as M };
    const issue = parsed.error.issues[0];
    return refuse(echo, `${type}: ${issue?.path.join('.') ?? ''} ${issue?.message ?? 'unreadable'}`);
  };
}

function refuse(id: string | undefined, message: string) {
  return {
    ok: false as const,
    unknown_type: false,
    error: {
      type: 'error' as const,
      ...(id === undefined ? {} : { id }),
      code: 'invalid_request',
      message,
    },
  };
}

export const readNodeMessage = reader<NodeMessage>(nodeMessageSchemas);
export const readControlMessage = reader<ControlMessage>(controlMessageSchemas);
