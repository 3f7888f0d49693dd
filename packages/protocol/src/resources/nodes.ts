import { z } from 'zod';
import { HEALTH, labelsSchema, modelIdSchema, nodeNameSchema, operationSchema } from '../descriptor.ts';
import { DISCOVERY_REASONS, DISCOVERY_STAGES, DISCOVERY_STATES, NODE_STATES } from '../states.ts';
import { time, count } from './fields.ts';

/** Nodes, and what their backends tell of their models. */

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
    replica: z
      .string()
      .nullable()
      .optional()
      .describe('Which replica has its link; null: none. `/readyz` says which one answers.'),
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
