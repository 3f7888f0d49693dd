import type { Migration } from '../migrate.ts';

/** The client's trace, where it sent one with a detached job: its span is told at the end, by whoever sees that. */
export const traces: Migration = {
  version: 6,
  name: 'traces',
  statements: ['alter table jobs add column traceparent text'],
};
