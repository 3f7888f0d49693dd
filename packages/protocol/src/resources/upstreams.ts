import { z } from 'zod';
import { HEALTH, labelsSchema, modelIdSchema, nodeNameSchema, OPERATIONS } from '../descriptor.ts';
import { time, count, ms } from './fields.ts';

/** What the HTTP API takes and gives of providers and routes. */

const providerFields = {
  name: nodeNameSchema.describe('What it is called, unique among providers.'),
  base_url: z
    .url({ protocol: /^https?$/, error: 'An address that starts with http:// or https://.' })
    .max(1024)
    .refine(
      isPlainAddress,
      'Neither user, password, query nor fragment belongs in it; the key has a field of its own.',
    )
    .describe('Where its OpenAI-compatible API begins, like `https://api.example.com/v1`.'),
  api_key: z
    .string()
    .min(1)
    .max(4096)
    .regex(/^[\x21-\x7e]+$/, 'Printable ASCII without spaces: it travels in a header.')
    .describe('Stored sealed, shown nowhere.'),
  key_header: z
    .string()
    .regex(/^[a-z][a-z0-9-]{0,63}$/, 'The name of a header, in lower case.')
    .refine((header) => !RESERVED_HEADERS.has(header), 'This header is set otherwise.')
    .describe('The header that carries the key; in `authorization` it is a bearer token.'),
  labels: labelsSchema.describe(
    'A key with `node_labels` is served only by providers that have all of them.',
  ),
  concurrency: z.number().int().min(1).max(100_000).describe('Requests that it is asked at once.'),
  enabled: z.boolean().describe('A disabled one gets no new work.'),
  probe: z
    .enum(['models', 'none'])
    .describe('How its health is found: by its list of models, or only by what becomes of requests.'),
  connect_timeout_ms: timeout('How long a connection may take; without it FLOTILLA_CONNECT_TIMEOUT_MS.'),
  first_byte_timeout_ms: timeout(
    'How long the first byte may take; without it FLOTILLA_FIRST_BYTE_TIMEOUT_MS.',
  ),
  idle_timeout_ms: timeout('How long it may be silent in an answer; without it FLOTILLA_IDLE_TIMEOUT_MS.'),
};
function timeout(why: string) {
  return ms.max(3_600_000).describe(why);
}
/** Those that the control plane itself writes, and those that HTTP does. */
const RESERVED_HEADERS = new Set([
  'accept',
  'accept-encoding',
  'connection',
  'content-length',
  'content-type',
  'expect',
  'host',
  'keep-alive',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
  'user-agent',
  'x-request-id',
]);
function isPlainAddress(text: string): boolean {
  if (!URL.canParse(text)) return false;
  const { username, password, search, hash, hostname } = new URL(text);
  return username === '' && password === '' && search === '' && hash === '' && hostname !== '';
}
export const providerCreate = z.strictObject({
  name: providerFields.name,
  base_url: providerFields.base_url,
  api_key: providerFields.api_key.optional(),
  key_header: providerFields.key_header.default('authorization'),
  labels: providerFields.labels.default({}),
  concurrency: providerFields.concurrency.default(64),
  enabled: providerFields.enabled.default(true),
  probe: providerFields.probe.default('models'),
  connect_timeout_ms: providerFields.connect_timeout_ms.optional(),
  first_byte_timeout_ms: providerFields.first_byte_timeout_ms.optional(),
  idle_timeout_ms: providerFields.idle_timeout_ms.optional(),
});
/** What is left out stays as it is; null takes the key away, or lifts a time. */
export const providerUpdate = z
  .strictObject({
    ...providerFields,
    api_key: providerFields.api_key.nullable(),
    connect_timeout_ms: providerFields.connect_timeout_ms.nullable(),
    first_byte_timeout_ms: providerFields.first_byte_timeout_ms.nullable(),
    idle_timeout_ms: providerFields.idle_timeout_ms.nullable(),
  })
  .partial();
export const providerView = z
  .object({
    id: z.string(),
    name: z.string(),
    base_url: z.string(),
    has_key: z.boolean(),
    key_header: z.string(),
    labels: z.record(z.string(), z.string()),
    concurrency: count,
    enabled: z.boolean(),
    probe: z.enum(['models', 'none']),
    connect_timeout_ms: count.nullable(),
    first_byte_timeout_ms: count.nullable(),
    idle_timeout_ms: count.nullable(),
    health: z.enum(HEALTH).describe('By its last probe and by what became of requests.'),
    reason: z.string().nullable().describe('Why it is not healthy, or why it gets no work now.'),
    alarms: z.array(z.string()).describe('What somebody has to mend: a key that it refuses, say.'),
    in_flight: count.describe('Requests that it is answering now.'),
    models: z
      .array(z.string())
      .nullable()
      .describe('What its last good list had, the first thousand; null: it has given none.'),
    probed_at: time.nullable(),
    created_at: time,
  })
  .meta({ id: 'Provider' });
export type ProviderView = z.infer<typeof providerView>;

const routeTarget = z
  .strictObject({
    provider: z
      .string()
      .min(1)
      .max(128)
      .optional()
      .describe('A provider, by name or id; without it the nodes that have the model.'),
    model: modelIdSchema.optional().describe("The model's name there; without it the route's."),
    labels: labelsSchema
      .default({})
      .describe('Only nodes (or the provider, if it has them) with all of these.'),
  })
  .describe('A provider and a model of it, or the nodes with a model.');
const routeFields = {
  name: modelIdSchema.describe('The model that clients ask for.'),
  aliases: z.array(modelIdSchema).max(64).describe('Other names of it.'),
  targets: z
    .array(routeTarget)
    .min(1)
    .max(16)
    .describe('In this order: the first that can take a request gets it, the next ones when it fails.'),
  enabled: z.boolean().describe('A disabled one answers 404, also where nodes have a model of its name.'),
};
export const routeCreate = z.strictObject({
  name: routeFields.name,
  aliases: routeFields.aliases.default([]),
  targets: routeFields.targets,
  enabled: routeFields.enabled.default(true),
});
/** What is left out stays as it is. */
export const routeUpdate = z.strictObject(routeFields).partial();
export const routeView = z
  .object({
    id: z.string(),
    name: z.string(),
    aliases: z.array(z.string()),
    targets: z.array(
      z.object({
        provider: z.string().nullable().describe('Its id; null: the nodes.'),
        provider_name: z.string().nullable(),
        model: z.string(),
        labels: z.record(z.string(), z.string()),
      }),
    ),
    enabled: z.boolean(),
    created_at: time,
  })
  .meta({ id: 'Route' });
export type RouteView = z.infer<typeof routeView>;
export const routeExplainBody = z.strictObject({
  model: modelIdSchema.describe('What a client would ask for.'),
  operation: z.enum(OPERATIONS).default('chat'),
  key: z
    .string()
    .max(128)
    .optional()
    .describe('The id of the key that would ask; without it one that may everything.'),
});
export const routeExplanation = z
  .object({
    model: z.string(),
    route: z.string().nullable().describe('The route that decides; null: none, the nodes with the model do.'),
    outcome: z
      .enum(['served', 'waits', 'refused'])
      .describe('Whether it would be served at once, wait for a slot, or be refused.'),
    summary: z.string(),
    targets: z
      .array(
        z.object({
          provider: z.string().nullable(),
          model: z.string(),
          chosen: z.boolean().describe('It would go here.'),
          places: z.array(
            z.object({
              node: z.string().nullable(),
              name: z.string(),
              verdict: z.string().describe('`could take it`, or the reason why not.'),
              reason: z.string().nullable(),
            }),
          ),
        }),
      )
      .describe('In the order in which they are tried.'),
  })
  .meta({ id: 'RouteExplanation' });
export type RouteExplanation = z.infer<typeof routeExplanation>;
