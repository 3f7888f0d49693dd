import type { Migration } from '../migrate.ts';

/**
 * A detached job's row is written anew when it is claimed and when it ends, each time with an entry in every index whose
 * condition it meets. What lists jobs meets open and ended ones apart now, so that most of a job's moves cost it one entry
 * less or two: see decision 025. The new ones are made first: until the old ones are dropped, others can read.
 */
export const openAndEndedJobs: Migration = {
  version: 10,
  name: 'open and ended jobs',
  statements: [
    `create index jobs_ended_by_key on jobs (key, id) where finished_at is not null`,
    `create index jobs_ended_by_model on jobs (model, id) where finished_at is not null`,
    // Nearly every row is a success: finding the others by state needs an index, finding successes does not.
    `create index jobs_ended_by_state on jobs (state, id) where finished_at is not null and state <> 'succeeded'`,
    `create index jobs_open_by_key on jobs (key, id) where finished_at is null`,
    // Made when a job is accepted or comes back; what is at work is no more than the fleet has slots.
    `create index jobs_queued_by_model on jobs (model, id) where state = 'queued'`,
    `drop index jobs_by_key`,
    `drop index jobs_by_model`,
    `drop index jobs_by_state`,
  ],
};
