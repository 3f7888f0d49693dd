import { z } from 'zod';

/**
 * What a node says about itself. The full descriptor travels only when its hash changed or on request; a fault in it
 * is a warning, never a reason to refuse a node its liveness, so it is read part by part: a bad backend is left out
 * and named, the rest stands.
 */
export const OPERATIONS = ['chat', 'completions', 'embeddings'] as const;
export type Operation = (typeof OPERATIONS)[number];
export const operationSchema = z.enum(OPERATIONS);

export const HEALTH = ['healthy', 'degraded', 'down'] as const;
export type Health = (typeof HEALTH)[number];

/** Names reach terminals, logs and the store: no control character, no half of a surrogate. */
const name = (most: number) =>
  z
    .string()
    .min(1)
    .max(most)
    .refine((text) => !/[\p{Cc}\p{Cs}]/u.test(text), 'It has characters that cannot be shown.');
const shortText = name(128);
export const modelIdSchema = name(256);
export const nodeNameSchema = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/, 'Letters, digits, dot, dash and underscore; 63 at most.');
export const labelsSchema = z
  .record(z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$/), z.string().max(128))
  .refine((labels) => Object.keys(labels).length <= 64, 'At most 64 labels.');

export const modelSchema = z.object({
  id: modelIdSchema,
  operations: z.array(operationSchema).min(1).default(['chat', 'completions']),
  /** In memory now, where the backend tells; placement prefers it. */
  loaded: z.boolean().optional(),
  context_length: z.number().int().positive().optional(),
});
export type Model = z.infer<typeof modelSchema>;

export const backendSchema = z.object({
  /** Unique on its node, stable over restarts. */
  id: shortText,
  kind: shortText,
  version: z.string().max(128).optional(),
  /** The pool whose slots its models share. */
  pool: shortText,
  models: z.array(modelSchema).max(2000),
});
export type Backend = z.infer<typeof backendSchema>;

export const poolSchema = z.object({
  id: shortText,
  /** How many attempts may run in it at once. */
  capacity: z.number().int().min(0).max(100_000),
  capacity_from: z.enum(['config', 'backend', 'default']),
});
export type Pool = z.infer<typeof poolSchema>;

const regionSchema = z.string().max(128);
const versionSchema = z.string().max(64);
const platformSchema = z.string().max(64);

export const descriptorSchema = z.object({
  name: nodeNameSchema,
  labels: labelsSchema.default({}),
  region: regionSchema.optional(),
  /** The daemon's version. */
  version: versionSchema.default('unknown'),
  platform: platformSchema.optional(),
  backends: z.array(backendSchema).max(256).default([]),
  pools: z.array(poolSchema).max(257).default([]),
});
export type Descriptor = z.infer<typeof descriptorSchema>;

export interface ReadDescriptor {
  descriptor: Descriptor;
  /** One sentence for each part that was left out. */
  warnings: string[];
}

/**
 * Reads a descriptor part by part: what is sound is kept, what is not becomes a warning.
 * @param name the node's enrolled name, which the descriptor cannot change
 */
export function readDescriptor(input: unknown, name: string): ReadDescriptor {
  const warnings: string[] = [];
  const source = isObject(input) ? input : {};
  if (!isObject(input)) warnings.push('descriptor: not an object; the node offers nothing.');

  const part = <T, F>(field: string, schema: z.ZodType<T>, fallback: F): T | F => {
    if (source[field] === undefined) return fallback;
    const parsed = schema.safeParse(source[field]);
    if (parsed.success) return parsed.data;
    warnings.push(`descriptor.${field}: ${firstIssue(parsed.error)}`);
    return fallback;
  };
  const items = <T extends { id: string }>(field: string, schema: z.ZodType<T>, most: number): T[] => {
    const list = source[field];
    if (list === undefined) return [];
    if (!Array.isArray(list)) {
      warnings.push(`descriptor.${field}: not a list.`);
      return [];
    }
    if (list.length > most) warnings.push(`descriptor.${field}: only the first ${most} are read.`);
    const byId = new Map<string, T>();
    for (const [index, item] of list.slice(0, most).entries()) {
      const parsed = schema.safeParse(item);
      if (!parsed.success) warnings.push(`descriptor.${field}.${index}: ${firstIssue(parsed.error)}`);
      else if (byId.has(parsed.data.id)) warnings.push(`descriptor.${field}.${index}: its id occurs twice.`);
      else byId.set(parsed.data.id, parsed.data);
    }
    return [...byId.values()];
  };

  const pools = items('pools', poolSchema, 257);
  const poolIds = new Set(pools.map((pool) => pool.id));
  const backends = items('backends', backendShellSchema, 256).flatMap((shell) => {
    if (!poolIds.has(shell.pool)) {
      warnings.push(`descriptor.backends.${shell.id}: its pool ${shell.pool} is not listed.`);
      return [];
    }
    const models: Model[] = [];
    for (const [index, item] of shell.models.entries()) {
      const parsed = modelSchema.safeParse(item);
      if (parsed.success) models.push(parsed.data);
      else warnings.push(`descriptor.backends.${shell.id}.models.${index}: ${firstIssue(parsed.error)}`);
    }
    return [{ ...shell, models }];
  });

  const descriptor: Descriptor = {
    name,
    labels: part('labels', labelsSchema, {}),
    version: part('version', versionSchema, 'unknown'),
    backends,
    pools,
  };
  const region = part('region', regionSchema, undefined);
  if (region !== undefined) descriptor.region = region;
  const platform = part('platform', platformSchema, undefined);
  if (platform !== undefined) descriptor.platform = platform;
  return { descriptor, warnings: warnings.slice(0, 20) };
}

/** A backend whose models are still unread, so that one bad model does not cost the others. */
const backendShellSchema = backendSchema.extend({ models: z.array(z.unknown()).max(2000) });

function firstIssue(error: z.ZodError): string {
  const issue = error.issues[0];
  return issue ? `${issue.path.join('.')} ${issue.message}`.trim() : 'unreadable';
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
