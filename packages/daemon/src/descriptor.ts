import { createHash } from 'node:crypto';
import type { BackendHealth, Descriptor } from '@flotilla/protocol';
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
}

export function describeNode({ name, labels, region, version, backends }: DescriptorInput): Described {
  const descriptor: Descriptor = {
    name,
    labels,
    ...(region === undefined ? {} : { region }),
    version,
    platform: `${process.platform}-${process.arch}`,
    backends: backends.map((backend) => ({
      id: backend.id,
      kind: backend.kind,
      ...(backend.version === undefined ? {} : { version: backend.version }),
      pool: backend.target.pool,
      models: backend.models.toSorted((a, b) => (a.id < b.id ? -1 : 1)),
    })),
    pools: backends.map(({ target, capacity, capacity_from }) => ({
      id: target.pool,
      capacity,
      capacity_from,
    })),
  };
  return {
    descriptor,
    descriptor_hash: stableHash(descriptor),
    health: backends.map(({ health }) => health),
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
