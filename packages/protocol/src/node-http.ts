import { z } from 'zod';
import { HEALTH, operationSchema } from './descriptor.ts';
import { type Desired, usageSchema } from './messages.ts';

/**
 * The node link over plain HTTP, for small nodes: what each call of `/node/v1/…` takes and gives. The same states and
 * rules as on the WebSocket stand behind it; docs/guides/write-a-node.md tells the order of the calls.
 */
const count = z.number().int().nonnegative();
const session = z.string().min(1).max(128).describe('What `register` gave.');
const reason = z.string().transform((text) => text.slice(0, 1000));

/** A small node runs this many attempts at most. */
export const HTTP_NODE_SLOTS_MAX = 64;
/** A lease call is kept open for this long at most: proxies close what is silent for a minute. */
export const LEASE_WAIT_MAX_MS = 55_000;

export const nodeAttemptParams = z.object({
  id: z.string().min(1).max(128),
  attempt: z.coerce.number().int().positive(),
});
export const nodeSessionQuery = z.object({ session });

const models = z.array(z.unknown()).max(2000);
export const nodeRegisterBody = z.object({
  boot_id: z.string().min(1).max(128).describe('Another one for each start of the node.'),
  models: models.describe('What it serves: names, or objects of `id`, `operations`, `context_length`.'),
  slots: z.number().int().min(1).max(HTTP_NODE_SLOTS_MAX).default(1).describe('How many at once.'),
  health: z.enum(HEALTH).default('healthy').describe('Of its model server.'),
  version: z.string().max(64).optional(),
  platform: z.string().max(64).optional(),
});
export type NodeRegister = z.infer<typeof nodeRegisterBody>;

const desired = z.object({
  cordoned: z.boolean().describe('It gets no new work.'),
  drain_ms: z.number().optional().describe('Time left for what it has; absent when no drain is wanted.'),
}) satisfies z.ZodType<Desired>;
const warnings = z.array(z.string()).describe('What could not be read of what it said about itself.');

export const nodeRegisterAnswer = z
  .object({
    session: z.string().describe('Goes with every other call.'),
    node_id: z.string(),
    name: z.string(),
    heartbeat_ms: z.number().describe('How often to call `heartbeat`.'),
    lease_ttl_ms: z.number().describe('Without a beat for this long its work is moved.'),
    desired,
    warnings,
  })
  .meta({ id: 'NodeSession' });
export type NodeRegisterAnswer = z.infer<typeof nodeRegisterAnswer>;

// Whatever else cannot be read never costs the node its liveness.
export const nodeBeatBody = z.object({
  health: z.enum(HEALTH).default('healthy').catch('degraded').describe('Of its model server.'),
  reason: reason.optional().catch(undefined).describe('Why it is not healthy.'),
  in_flight: count.optional().catch(undefined).describe('Its own count of what it runs.'),
  models: models.optional().catch(undefined).describe('What it serves, where that has changed.'),
  draining: z.boolean().default(false).catch(false).describe('It stops: it gets no more.'),
});
export type NodeBeat = z.infer<typeof nodeBeatBody>;
export const nodeBeatAnswer = z.object({ desired, warnings });
export type NodeBeatAnswer = z.infer<typeof nodeBeatAnswer>;

export const nodeDeregisterBody = z.object({ reason: reason.default('stopping') });

export const nodeLeaseQuery = nodeSessionQuery.extend({
  wait_ms: z.coerce
    .number()
    .int()
    .min(0)
    .max(LEASE_WAIT_MAX_MS)
    .default(25_000)
    .describe('How long the call stays open when there is nothing to say.'),
  ack: z.coerce.number().int().min(0).default(0).describe('The `ack` of the answer before.'),
});
const fence = { job: z.string(), attempt: z.number() };
const leaseMessage = z.discriminatedUnion('type', [
  z.object({
    type: z.literal('offer'),
    ...fence,
    operation: operationSchema,
    streaming: z.boolean().describe('The client asked for an event stream.'),
    body_length: count,
    run_ms: z.number().describe('How long the work may take.'),
    first_byte_ms: z.number().describe('How long the model server may take for its first byte.'),
    idle_ms: z.number().describe('How long it may be silent after that.'),
    model: z.string(),
    request_id: z.string(),
    traceparent: z
      .string()
      .optional()
      .describe('The trace context of the client, for the model server; absent: it sent none.'),
  }),
  z.object({ type: z.literal('cancel'), ...fence }),
  z.object({ type: z.literal('abandon'), ...fence, reason: z.string() }),
]);
export type LeaseMessage = z.infer<typeof leaseMessage>;
export const nodeLeaseAnswer = z
  .object({
    ack: count.describe('Goes with the next call; until then all of these are said again.'),
    desired,
    messages: z.array(leaseMessage),
  })
  .meta({ id: 'Lease' });
export type NodeLeaseAnswer = z.infer<typeof nodeLeaseAnswer>;

export const nodeRejectBody = z.object({ reason: reason.default('refused') });
export const nodeReleasedBody = z.object({
  started: z.boolean().default(true).describe('Whether its model server had been asked.'),
});
export const nodeOutputQuery = nodeSessionQuery.extend({
  offset: z.coerce
    .number()
    .int()
    .min(0)
    .default(0)
    .describe('Where in the whole answer this begins; what is there already is passed over.'),
  head: z
    .literal('inline')
    .optional()
    .describe("The model server's status line and headers stand before the body, as `curl -i` prints them."),
  status: z.coerce.number().int().min(200).max(599).default(200).describe('Its status, without `head`.'),
  content_type: z
    .string()
    .max(256)
    .optional()
    .describe('Its content type, without `head`; else what the client asked for.'),
});
export type NodeOutput = z.infer<typeof nodeOutputQuery>;
export const nodeOutputAnswer = z.object({
  acked_offset: count.describe('Everything before it has arrived.'),
  window: count.describe('How much can be sent on before a call waits for the client.'),
});
export const nodeCompleteBody = z.object({
  usage: usageSchema.partial().optional().catch(undefined).describe('Where the answer does not tell.'),
});
export type NodeComplete = z.infer<typeof nodeCompleteBody>;
export const nodeFailBody = z.object({
  code: z.enum(['backend_error', 'invalid_request', 'run_timeout']).default('backend_error'),
  message: reason.default('The backend failed.'),
  retryable: z.boolean().default(true).describe('Whether another node may do better.'),
});
export const nodeResultAnswer = z.object({
  outcome: z.enum(['accepted', 'duplicate', 'stale', 'conflict']).describe('Each of them ends the attempt.'),
});
