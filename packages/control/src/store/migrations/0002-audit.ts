import type { Migration } from '../migrate.ts';

/** Acts of administration. Ids sort by time, so that the primary key finds a time as well. */
export const audit: Migration = {
  version: 2,
  name: 'audit',
  statements: [
    `create table audit (
       id text collate "C" primary key,
       at bigint not null,
       action text not null,
       outcome text not null,
       key text collate "C",
       key_name text,
       address text,
       target text collate "C",
       change jsonb not null,
       request_id text not null
     ) with (autovacuum_vacuum_insert_scale_factor = 0.05)`,
    `create index audit_by_target on audit (target, id)`,
    `create index audit_by_key on audit (key, id)`,
  ],
};
