import type { Migration } from '../migrate.ts';

/**
 * Several replicas on one store. `installation` names it to the bus, which other installations may use as well; it is no
 * secret. `bus`: this replica can be told of the others and tell them, so it may have them beside it.
 */
export const replicas: Migration = {
  version: 8,
  name: 'replicas',
  statements: [
    'alter table configuration add column installation text',
    `update configuration set installation = md5(random()::text || clock_timestamp()::text || random()::text)`,
    'alter table configuration alter column installation set not null',
    // Raised by whatever happens to nodes; each row has the number of its last change, so that only those are read.
    'alter table configuration add column fleet bigint not null default 0',
    'alter table node_liveness add column moved bigint not null default 0',
    // As the node told it last, for the replicas that it is not linked to.
    'alter table node_liveness add column health jsonb',
    'alter table replicas add column bus boolean not null default false',
  ],
};
