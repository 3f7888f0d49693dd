import type { Migration } from '../migrate.ts';

/**
 * Whether the sessions of a replica bear its id: then one that has none is gone, whoever else is connected. Of a replica
 * of before nothing is known, and its successor looks on for longer.
 */
export const namedSessions: Migration = {
  version: 11,
  name: 'named sessions',
  statements: ['alter table replicas add column named boolean not null default false'],
};
