import type { Migration } from '../migrate.ts';

/** What detached jobs reserve of their keys' budgets outlives the process, and a node's late word corrects a usage row. */
export const detachedAccounts: Migration = {
  version: 7,
  name: 'detached accounts',
  statements: [
    // Null: attached, or accepted before there was such a column.
    `alter table jobs add column reserved_tokens bigint`,
    // An estimate, until the node has told what the attempt has used; it may never.
    `alter table usage add column provisional boolean not null default false`,
  ],
};
