import {
  type CatalogueRecord,
  type DiscoveryRecord,
  catalogueOutdated,
  discoveryMessage,
  matchesModel,
} from '@flotilla/core';
import type { DiscoveryView, Model, NodeModelsView } from '@flotilla/protocol';
import type { FleetNode } from '../fleet/node.ts';

/** @param name of its node, for people */
export function discoveryView(record: DiscoveryRecord, name: string): DiscoveryView {
  const { reason, stage, waiting_for, finished_at } = record;
  const detail = record.results.find((told) => told.outcome === 'failed' && told.backend === waiting_for);
  return {
    id: record.id,
    node: record.node,
    backend: record.backend,
    state: record.state,
    reason,
    stage,
    message:
      reason === null
        ? null
        : discoveryMessage({
            reason,
            stage,
            node: name,
            backend: waiting_for ?? record.backend,
            ...(detail?.outcome === 'failed' ? { detail: detail.detail } : {}),
          }),
    waiting_for: finished_at === null ? waiting_for : null,
    backends: record.results.map((told) =>
      told.outcome === 'listed'
        ? {
            backend: told.backend,
            kind: told.kind,
            version: told.version ?? null,
            models: told.models.map(modelView),
            models_total: told.models_total,
            reason: null,
            stage: 'listing' as const,
            message: null,
          }
        : {
            backend: told.backend,
            kind: null,
            version: null,
            models: null,
            models_total: null,
            reason: told.reason,
            stage: told.stage,
            message: discoveryMessage({ ...told, node: name }),
          },
    ),
    created_at: iso(record.created_at),
    expires_at: iso(record.expires_at),
    finished_at: finished_at === null ? null : iso(finished_at),
  };
}

/** The last lists, and the backends that have none: no list is not an empty one. */
export function nodeModelsView(node: FleetNode, catalogues: readonly CatalogueRecord[]): NodeModelsView {
  const described = new Map((node.descriptor?.backends ?? []).map((backend) => [backend.id, backend]));
  const allowed = (id: string) => matchesModel(node.record.allowed_models, id);
  // The store drops a list that has become old; until that is written it is not shown either.
  const current = catalogues.filter((catalogue) => {
    const backend = described.get(catalogue.backend);
    return backend === undefined || !catalogueOutdated(catalogue, backend);
  });
  const listed = current.map(({ backend, kind, version, models, models_total, discovered_at, age_ms }) => ({
    backend,
    kind,
    version,
    discovered_at: iso(discovered_at),
    age_ms: Math.max(0, age_ms),
    models: models.map((model) => ({ ...modelView(model), allowed: allowed(model.id) })),
    models_total,
  }));
  const unlisted = [...described.values()]
    .filter(({ id }) => !current.some(({ backend }) => backend === id))
    .map(({ id, kind, version }) => ({
      backend: id,
      kind,
      version: version ?? null,
      discovered_at: null,
      age_ms: null,
      models: null,
      models_total: null,
    }));
  const backends = [...listed, ...unlisted].sort((a, b) => (a.backend < b.backend ? -1 : 1));
  return { node: node.id, name: node.record.name, state: node.state, backends };
}

function modelView({ id, operations, loaded, context_length }: Model) {
  return { id, operations, loaded: loaded ?? null, context_length: context_length ?? null };
}

function iso(wall_ms: number): string {
  return new Date(wall_ms).toISOString();
}
