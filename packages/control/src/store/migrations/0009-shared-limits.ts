import type { Migration } from '../migrate.ts';

/** Limits of keys that replicas share. The rules are in `core/src/draw.ts`. */
export const sharedLimits: Migration = {
  version: 9,
  name: 'shared limits',
  statements: [
    // No index but the key, and room on each page: an update is a HOT update. `shares` is part of the row, so that its
    // lock holds for all of them.
    `create table allowances (
       key text collate "C" not null,
       kind text collate "C" not null,
       size bigint,
       used double precision not null,
       pledged bigint not null,
       at bigint not null,
       start bigint not null,
       counted_at bigint not null,
       stale boolean not null,
       doubt boolean not null,
       recall bigint not null,
       shares jsonb not null,
       primary key (key, kind)
     ) with (fillfactor = 50)`,
    // The replica whose share of the budget covers what the job reserves; `replica` is that of its attempt.
    'alter table jobs add column accepted_by text collate "C"',
  ],
};
