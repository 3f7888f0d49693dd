import type { Migration } from '../migrate.ts';

/**
 * Conventions of every table:
 * - Times are bigint milliseconds since the epoch; what a request may wait is told as a duration and made a time here.
 * - Ids sort by creation (UUIDv7) and compare bytewise: collate "C", on every server's locale.
 * - No foreign keys on hot tables: each would cost a look-up a row. One statement writes, and one deletes, what
 *   belongs together.
 * - Credentials are there as hashes only.
 */
export const initial: Migration = {
  version: 1,
  name: 'initial',
  statements: [
    // One row: raised by every write of administration, read by every replica twice a second.
    `create table configuration (
       one boolean primary key default true check (one),
       version bigint not null
     ) with (fillfactor = 10)`,
    `insert into configuration (version) values (1)`,

    `create table api_keys (
       id text collate "C" primary key,
       name text not null,
       hash text not null unique,
       role text,
       scopes jsonb not null,
       allowed_models jsonb not null,
       node_labels jsonb not null,
       requests_per_minute bigint,
       concurrency bigint,
       created_at bigint not null,
       expires_at bigint,
       last_used_at bigint,
       revoked_at bigint
     ) with (fillfactor = 70)`,

    `create table enrolment_tokens (
       id text collate "C" primary key,
       hash text not null unique,
       labels jsonb not null,
       allowed_models jsonb not null,
       max_uses bigint not null,
       uses bigint not null,
       created_at bigint not null,
       expires_at bigint not null
     )`,

    `create table nodes (
       id text collate "C" primary key,
       name text not null unique,
       labels jsonb not null,
       allowed_models jsonb not null,
       cordoned boolean not null default false,
       drain_deadline_at bigint,
       descriptor jsonb,
       descriptor_hash text,
       created_at bigint not null,
       revoked_at bigint
     )`,
    // Apart from nodes, narrow, half-filled pages, no index but the key: every update is a HOT update.
    `create table node_liveness (
       node text collate "C" primary key,
       state text not null,
       epoch bigint not null default 0,
       replica text,
       close_reason text,
       changed_at bigint,
       last_seen_at bigint
     ) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500)`,
    `create table node_credentials (
       id text collate "C" primary key,
       node text collate "C" not null,
       hash text not null unique,
       created_at bigint not null,
       expires_at bigint
     )`,
    `create index node_credentials_by_node on node_credentials (node, id)`,
    `create index node_credentials_by_end on node_credentials (expires_at) where expires_at is not null`,

    // bumps: a watcher compares the count with what it saw, never a time with its own clock.
    `create table replicas (
       id text collate "C" primary key,
       bumps bigint not null,
       started_at bigint not null,
       bumped_at bigint not null
     ) with (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200)`,

    // Attached and detached jobs. What only detached jobs have is null for the others, which costs a bit each.
    `create table jobs (
       id text collate "C" primary key,
       kind text not null,
       attached boolean not null,
       state text not null,
       replica text collate "C" not null,
       key text collate "C",
       model text not null,
       operation text not null,
       request_id text not null,
       order_key bigint not null,
       error_code text,
       error_message text,
       created_at bigint not null,
       finished_at bigint,
       orphaned boolean not null default false,
       lane text,
       priority bigint,
       metadata jsonb,
       idempotency_key text,
       body_hash text,
       on_node_loss text,
       max_attempts bigint,
       queue_timeout_ms bigint,
       run_timeout_ms bigint,
       attempt bigint not null default 0,
       failures bigint not null default 0,
       node text collate "C",
       epoch bigint,
       offered_at bigint,
       started_at bigint,
       not_before bigint,
       deadline_at bigint,
       accepted_attempt bigint,
       result_digest text
     ) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
             autovacuum_analyze_scale_factor = 0.05)`,
    `create index jobs_by_key on jobs (key, id)`,
    `create index jobs_by_model on jobs (model, id)`,
    // Nearly every row is a success: finding the others by state needs an index, finding successes does not.
    `create index jobs_by_state on jobs (state, id) where state <> 'succeeded'`,
    `create index jobs_attached_open on jobs (replica) where attached and finished_at is null`,
    // Ready jobs only: what is in back-off has a not_before and costs a claim nothing.
    `create index jobs_ready on jobs (lane, order_key, id)
       where state = 'queued' and not attached and not_before is null`,
    `create index jobs_back_off on jobs (not_before) where state = 'queued' and not_before is not null`,
    `create index jobs_deadline on jobs (deadline_at)
       where deadline_at is not null and state in ('queued', 'leased', 'running')`,
    `create index jobs_by_node on jobs (node, id) where node is not null and state in ('leased', 'running')`,
    `create unique index jobs_idempotency on jobs (idempotency_key, key) nulls not distinct
       where idempotency_key is not null`,

    `create table attempts (
       job text collate "C" not null,
       attempt bigint not null,
       node text collate "C",
       backend text,
       epoch bigint not null,
       outcome text not null,
       code text,
       message text,
       offered_at bigint not null,
       started_at bigint,
       ended_at bigint,
       primary key (job, attempt)
     ) with (autovacuum_vacuum_scale_factor = 0.05)`,

    // What clients sent and got in detached jobs: erased by age, so listings never read past them.
    `create table job_bodies (
       job text collate "C" primary key,
       request text,
       result text,
       retention_ms bigint not null,
       erase_at bigint
     ) with (autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_scale_factor = 0.05)`,
    `create index job_bodies_by_end on job_bodies (erase_at) where erase_at is not null`,

    `create table usage (
       job text collate "C" primary key,
       request_id text not null,
       key text collate "C",
       model text not null,
       operation text not null,
       node text collate "C",
       outcome text not null,
       status bigint not null,
       attempts bigint not null,
       prompt_tokens bigint not null,
       completion_tokens bigint not null,
       cached_tokens bigint not null,
       estimated boolean not null,
       queue_ms bigint not null,
       first_byte_ms bigint,
       total_ms bigint not null,
       created_at bigint not null
     ) with (autovacuum_vacuum_insert_scale_factor = 0.05)`,
    `create index usage_by_time on usage (created_at, job)`,
    `create index usage_by_key on usage (key, created_at, job)`,
    `create index usage_by_model on usage (model, created_at, job)`,
    `create index usage_by_node on usage (node, created_at, job)`,
  ],
};
