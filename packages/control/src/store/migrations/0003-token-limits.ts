import type { Migration } from '../migrate.ts';

/**
 * Limits on tokens. What a key has spent is the sum of its usage rows; of rows that have outlived their time the sum by
 * day stays, so that a budget outlives them.
 */
export const tokenLimits: Migration = {
  version: 3,
  name: 'token-limits',
  statements: [
    `alter table api_keys add column tokens_per_minute bigint, add column token_budget jsonb`,
    // day: its beginning, UTC; 0 for all days that no running period needs apart.
    `create table swept_usage (
       key text collate "C" not null,
       day bigint not null,
       tokens bigint not null,
       primary key (key, day)
     )`,
  ],
};
