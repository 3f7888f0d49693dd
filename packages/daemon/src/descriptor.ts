import { createHash } from 'node:crypto';
import type { BackendHealth, Descriptor, Model } from '@flotilla/protocol';
import type { BackendState } from './backends/backend-set.ts';

/** What this node says of itself: see `protocol/src/descriptor.ts`. */
export interface DescriptorInput {
  name: string;
  labels: Record<string, string>;
  region?: string | undefined;
  version: string;
  backends: BackendState[];
}

export interface Described {
  descriptor: Descriptor;
  /** Equal for equal descriptors, on any machine and after any restart. */
  descriptor_hash: string;
  health: BackendHealth[];
  /** What did not fit, a sentence each. */
  cut: string[];
}

/**
 * Descriptor, health and inventory share the 256 KiB of a registration; see also `INVENTORY_MAX_BYTES`. A larger one
 * would be refused for ever, and the node with it.
 */
export const DESCRIPTOR_MAX_BYTES = 64 * 1024;
export const HEALTH_MAX_BYTES = 32 * 1024;
/**
 * What a node has under way at once: more than half of what fits into the inventory (`INVENTORY_MAX_BYTES`), the rest is for
 * results that wait for their acknowledgement. Offers beyond it would be rejected one by one, and each tried elsewhere.
 */
export const SLOTS_MOST = 512;

/** What fits of it: the longest lists of models are shortened, the same ones each time. */
export function describeNode(input: DescriptorInput): Described {
  for (let most = Math.max(0, ...input.backends.map(({ models }) => models.length)); ; most = most >> 1) {
    const whole = describeModels(input, most);
    // Why each model is ill goes before a model does: what is offered must not depend on how much of it is ill.
    const described = sizeOf(whole.health) <= HEALTH_MAX_BYTES ? whole : withoutReasons(whole);
    const fits =
      sizeOf(described.descriptor) <= DESCRIPTOR_MAX_BYTES && worstHealth(described) <= HEALTH_MAX_BYTES;
    if (fits || most === 0) return described;
  }
}

function withoutReasons(described: Described): Described {
  const health = described.health.map((backend) => ({
    ...backend,
    models: backend.models.map(({ id, health: own }) => ({ id, health: own })),
  }));
  return { ...described, health };
}

/** The size of its health, were each of its models ill. */
function worstHealth({ descriptor, health }: Described): number {
  const worst = descriptor.backends.map(({ id, models }) => ({
    ...health.find((backend) => backend.id === id),
    models: models.map((model) => ({ id: model.id, health: 'degraded' })),
  }));
  return sizeOf(worst);
}

function sizeOf(value: unknown): number {
  return Buffer.byteLength(JSON.stringify(value));
}

function describeModels(
  { name, labels, region, version, backends }: DescriptorInput,
  most: number,
): Described {
  const fitting = backends.map(({ models }) =>
    models.toSorted((a, b) => (a.id < b.id ? -1 : 1)).slice(0, most),
  );
  const slots = configuredSlots(backends);
  const descriptor: Descriptor = {
    name,
    labels,
    ...(region === undefined ? {} : { region }),
    version,
    platform: `${process.platform}-${process.arch}`,
    backends: backends.map((backend, index) => ({
      id: backend.id,
      kind: backend.kind,
      ...(backend.version === undefined ? {} : { version: backend.version }),
      pool: backend.target.pool,
      models: fitting[index]!,
    })),
    pools: backends.map(({ target, capacity, capacity_from }) => ({
      id: target.pool,
      capacity: offeredSlots(capacity, slots),
      capacity_from,
    })),
  };
  return {
    descriptor,
    descriptor_hash: stableHash(descriptor),
    health: backends.map(({ health }, index) => healthOf(health, fitting[index]!)),
    cut: [
      ...backends.flatMap(({ id, models }) =>
        models.length <= most
          ? []
          : [`${id} lists ${models.length} models; only the first ${most} by name are offered.`],
      ),
      ...(slots <= SLOTS_MOST
        ? []
        : [
            `Its backends have ${slots} slots, and a node offers ${SLOTS_MOST} at most, each backend its share: run a second node for the others.`,
          ]),
    ],
  };
}

export function configuredSlots(backends: readonly Pick<BackendState, 'capacity'>[]): number {
  return backends.reduce((sum, { capacity }) => sum + capacity, 0);
}

/**
 * A backend keeps one slot at least: without any its models would be listed, and never be served.
 * @param slots all that the node's backends have
 * @returns how many of this backend's slots are offered
 */
export function offeredSlots(capacity: number, slots: number): number {
  if (slots <= SLOTS_MOST) return capacity;
  return Math.min(capacity, Math.max(1, Math.floor((capacity * SLOTS_MOST) / slots)));
}

/** Reasons are short: there may be one for each of hundreds of models. */
const REASON_MAX = 120;

function healthOf(health: BackendHealth, models: readonly Model[]): BackendHealth {
  const offered = new Set(models.map(({ id }) => id));
  const differing = health.models.filter(({ id }) => offered.has(id));
  return {
    ...health,
    models: differing.map((model) =>
      model.reason === undefined ? model : { ...model, reason: model.reason.slice(0, REASON_MAX) },
    ),
  };
}

/** Of the text with all object keys in order, so that the order in which a server answers changes nothing. */
function stableHash(value: unknown): string {
  return createHash('sha256')
    .update(JSON.stringify(sorted(value)))
    .digest('hex')
    .slice(0, 32);
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value).toSorted(([a], [b]) => (a < b ? -1 : 1));
  return Object.fromEntries(entries.map(([key, item]) => [key, sorted(item)]));
}
