import type { Migration } from '../migrate.ts';

export const modelDiscoveries: Migration = {
  version: 4,
  name: 'model discoveries',
  statements: [
    // backend '': all of the node, so that one unique index holds "one in flight".
    `create table model_discoveries (
       id text collate "C" primary key,
       node text collate "C" not null,
       backend text not null,
       state text not null,
       stage text not null,
       waiting_for text,
       reason text,
       results jsonb not null default '[]',
       created_at bigint not null,
       expires_at bigint not null,
       finished_at bigint
     ) with (autovacuum_vacuum_scale_factor = 0.05)`,
    `create unique index model_discoveries_in_flight on model_discoveries (node, backend)
       where state in ('pending', 'running')`,
    `create index model_discoveries_open on model_discoveries (expires_at) where state in ('pending', 'running')`,
    `create index model_discoveries_by_node on model_discoveries (node, backend, id)`,

    // The last good list of each backend, whatever came of later discoveries.
    `create table model_catalogues (
       node text collate "C" not null,
       backend text not null,
       kind text not null,
       version text,
       models jsonb not null,
       models_total bigint not null,
       discovered_at bigint not null,
       primary key (node, backend)
     )`,
  ],
};
