-- The store of schema 1, as the program of its time left it. Recorded by tests/compat/record-store.ts: never edited.

create table schema_migrations (
         version bigint primary key,
         name text not null,
         applied_at bigint not null
       );

create table configuration (
       one boolean primary key default true check (one),
       version bigint not null
     ) with (fillfactor = 10);

insert into configuration (version) values (1);

create table api_keys (
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
     ) with (fillfactor = 70);

create table enrolment_tokens (
       id text collate "C" primary key,
       hash text not null unique,
       labels jsonb not null,
       allowed_models jsonb not null,
       max_uses bigint not null,
       uses bigint not null,
       created_at bigint not null,
       expires_at bigint not null
     );

create table nodes (
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
     );

create table node_liveness (
       node text collate "C" primary key,
       state text not null,
       epoch bigint not null default 0,
       replica text,
       close_reason text,
       changed_at bigint,
       last_seen_at bigint
     ) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

create table node_credentials (
       id text collate "C" primary key,
       node text collate "C" not null,
       hash text not null unique,
       created_at bigint not null,
       expires_at bigint
     );

create index node_credentials_by_node on node_credentials (node, id);

create index node_credentials_by_end on node_credentials (expires_at) where expires_at is not null;

create table replicas (
       id text collate "C" primary key,
       bumps bigint not null,
       started_at bigint not null,
       bumped_at bigint not null
     ) with (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

create table jobs (
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
             autovacuum_analyze_scale_factor = 0.05);

create index jobs_by_key on jobs (key, id);

create index jobs_by_model on jobs (model, id);

create index jobs_by_state on jobs (state, id) where state <> 'succeeded';

create index jobs_attached_open on jobs (replica) where attached and finished_at is null;

create index jobs_ready on jobs (lane, order_key, id)
       where state = 'queued' and not attached and not_before is null;

create index jobs_back_off on jobs (not_before) where state = 'queued' and not_before is not null;

create index jobs_deadline on jobs (deadline_at)
       where deadline_at is not null and state in ('queued', 'leased', 'running');

create index jobs_by_node on jobs (node, id) where node is not null and state in ('leased', 'running');

create unique index jobs_idempotency on jobs (idempotency_key, key) nulls not distinct
       where idempotency_key is not null;

create table attempts (
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
     ) with (autovacuum_vacuum_scale_factor = 0.05);

create table job_bodies (
       job text collate "C" primary key,
       request text,
       result text,
       retention_ms bigint not null,
       erase_at bigint
     ) with (autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_scale_factor = 0.05);

create index job_bodies_by_end on job_bodies (erase_at) where erase_at is not null;

create table usage (
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
     ) with (autovacuum_vacuum_insert_scale_factor = 0.05);

create index usage_by_time on usage (created_at, job);

create index usage_by_key on usage (key, created_at, job);

create index usage_by_model on usage (model, created_at, job);

create index usage_by_node on usage (node, created_at, job);

delete from api_keys;

insert into api_keys select * from jsonb_populate_recordset(null::api_keys, $rows$[
{"id": "key_01KDVDNA01E40R2081040G2081", "hash": "c32c1bb2d80428a752b9edd14e0cccabe0d0c48713d66c02866651da0e6d8ac0", "name": "admin", "role": "admin", "scopes": [], "created_at": 1767225600000, "expires_at": null, "revoked_at": null, "concurrency": null, "node_labels": {"region": "home"}, "last_used_at": null, "allowed_models": ["llama3", "qwen*"], "requests_per_minute": 60},
{"id": "key_01KDVDNA02E81840G2081040G2", "hash": "5d6ba1f5a90f7cc04d2e14de7c3d8e2e502eb49e6a8de61dfc6d91d2f1d7bfd0", "name": "jobs", "role": null, "scopes": ["inference", "jobs"], "created_at": 1767225600000, "expires_at": null, "revoked_at": null, "concurrency": null, "node_labels": {}, "last_used_at": null, "allowed_models": [], "requests_per_minute": null}
]$rows$);

delete from attempts;

insert into attempts select * from jsonb_populate_recordset(null::attempts, $rows$[
{"job": "job_01KDVDNA0CFG68R30C1G60R30C", "code": "node_lost", "node": "node_01KDVDNA03EC1R60R30C1G60R3", "epoch": 1, "attempt": 1, "backend": "ollama", "message": "the node was lost", "outcome": "node_lost", "ended_at": 1795710784122, "offered_at": 1795710784116, "started_at": 1795710784119},
{"job": "job_01KDVDNA0EFR78W3GE1R70W3GE", "code": null, "node": "node_01KDVDNA03EC1R60R30C1G60R3", "epoch": 1, "attempt": 1, "backend": "ollama", "message": null, "outcome": "succeeded", "ended_at": 1795710784067, "offered_at": 1795710784040, "started_at": 1795710784050},
{"job": "job_01KDVDNA0FFW7RY3RF1W7GY3RF", "code": null, "node": "node_01KDVDNA03EC1R60R30C1G60R3", "epoch": 7, "attempt": 1, "backend": "ollama", "message": null, "outcome": "succeeded", "ended_at": 1767225600300, "offered_at": 1767225600000, "started_at": 1767225600002}
]$rows$);

delete from configuration;

insert into configuration select * from jsonb_populate_recordset(null::configuration, $rows$[
{"one": true, "version": 5}
]$rows$);

delete from enrolment_tokens;

insert into enrolment_tokens select * from jsonb_populate_recordset(null::enrolment_tokens, $rows$[
{"id": "enr_01KDVDNA04EG2881040G208104", "hash": "9e6b026803d7edb8486a9509d7992ee8140f00ee7986190c7ddd484ea4bbc161", "uses": 1, "labels": {}, "max_uses": 2, "created_at": 1767225600000, "expires_at": 1767229200000, "allowed_models": []}
]$rows$);

delete from job_bodies;

insert into job_bodies select * from jsonb_populate_recordset(null::job_bodies, $rows$[
{"job": "job_01KDVDNA0AF858M2GA1850M2GA", "result": null, "request": "{\"model\":\"llama3\",\"messages\":[{\"role\":\"user\",\"content\":\"the queued one\"}]}", "erase_at": null, "retention_ms": 86400000},
{"job": "job_01KDVDNA0BFC5RP2RB1C5GP2RB", "result": null, "request": "{\"model\":\"llama3\",\"messages\":[{\"role\":\"user\",\"content\":\"the behind one\"}]}", "erase_at": null, "retention_ms": 86400000},
{"job": "job_01KDVDNA0CFG68R30C1G60R30C", "result": null, "request": "{\"model\":\"llama3\",\"messages\":[{\"role\":\"user\",\"content\":\"the backing_off one\"}]}", "erase_at": null, "retention_ms": 86400000},
{"job": "job_01KDVDNA0DFM6RT38D1M6GT38D", "result": null, "request": "{\"model\":\"llama3\",\"messages\":[{\"role\":\"user\",\"content\":\"the running one\"}]}", "erase_at": null, "retention_ms": 86400000},
{"job": "job_01KDVDNA0EFR78W3GE1R70W3GE", "result": "{\"choices\":[{\"text\":\"done\"}]}", "request": "{\"model\":\"llama3\",\"messages\":[{\"role\":\"user\",\"content\":\"the finished one\"}]}", "erase_at": 4102444800000, "retention_ms": 86400000}
]$rows$);

delete from jobs;

insert into jobs select * from jsonb_populate_recordset(null::jobs, $rows$[
{"id": "job_01KDVDNA0AF858M2GA1850M2GA", "key": "key_01KDVDNA02E81840G2081040G2", "kind": "inference", "lane": "[\"llama3\",\"chat\",[],null]", "node": null, "epoch": null, "model": "llama3", "state": "queued", "attempt": 0, "replica": "rep_a", "attached": false, "failures": 0, "metadata": {"project": "x"}, "orphaned": false, "priority": 0, "body_hash": "of the queued one", "operation": "chat", "order_key": 1767225600010, "created_at": 1767225600000, "error_code": null, "not_before": null, "offered_at": null, "request_id": "req_01KDVDNA0AF858M2GA1850M2GA", "started_at": null, "deadline_at": 4102444800000, "finished_at": null, "max_attempts": 3, "on_node_loss": "requeue", "error_message": null, "result_digest": null, "run_timeout_ms": 600000, "idempotency_key": "import-42", "accepted_attempt": null, "queue_timeout_ms": 86400000},
{"id": "job_01KDVDNA0BFC5RP2RB1C5GP2RB", "key": "key_01KDVDNA02E81840G2081040G2", "kind": "inference", "lane": "[\"llama3\",\"chat\",[],null]", "node": null, "epoch": null, "model": "llama3", "state": "queued", "attempt": 0, "replica": "rep_a", "attached": false, "failures": 0, "metadata": {"project": "x"}, "orphaned": false, "priority": 0, "body_hash": null, "operation": "chat", "order_key": 1767225600011, "created_at": 1767225600000, "error_code": null, "not_before": null, "offered_at": null, "request_id": "req_01KDVDNA0BFC5RP2RB1C5GP2RB", "started_at": null, "deadline_at": 4102444800000, "finished_at": null, "max_attempts": 3, "on_node_loss": "requeue", "error_message": null, "result_digest": null, "run_timeout_ms": 600000, "idempotency_key": null, "accepted_attempt": null, "queue_timeout_ms": 86400000},
{"id": "job_01KDVDNA0CFG68R30C1G60R30C", "key": "key_01KDVDNA02E81840G2081040G2", "kind": "inference", "lane": "[\"llama3\",\"chat\",[],null]", "node": null, "epoch": null, "model": "llama3", "state": "queued", "attempt": 1, "replica": "rep_a", "attached": false, "failures": 1, "metadata": {"project": "x"}, "orphaned": false, "priority": 0, "body_hash": null, "operation": "chat", "order_key": 1767225600012, "created_at": 1767225600000, "error_code": null, "not_before": 1, "offered_at": null, "request_id": "req_01KDVDNA0CFG68R30C1G60R30C", "started_at": null, "deadline_at": 4102444800000, "finished_at": null, "max_attempts": 3, "on_node_loss": "requeue", "error_message": null, "result_digest": null, "run_timeout_ms": 600000, "idempotency_key": null, "accepted_attempt": null, "queue_timeout_ms": 86400000},
{"id": "job_01KDVDNA0DFM6RT38D1M6GT38D", "key": "key_01KDVDNA02E81840G2081040G2", "kind": "inference", "lane": "[\"llama3\",\"chat\",[],null]", "node": "node_01KDVDNA03EC1R60R30C1G60R3", "epoch": 1, "model": "llama3", "state": "running", "attempt": 1, "replica": "rep_a", "attached": false, "failures": 0, "metadata": {"project": "x"}, "orphaned": false, "priority": 0, "body_hash": null, "operation": "chat", "order_key": 1767225600013, "created_at": 1767225600000, "error_code": null, "not_before": null, "offered_at": 1795710784096, "request_id": "req_01KDVDNA0DFM6RT38D1M6GT38D", "started_at": 1795710784101, "deadline_at": 4102444800000, "finished_at": null, "max_attempts": 3, "on_node_loss": "requeue", "error_message": null, "result_digest": null, "run_timeout_ms": 600000, "idempotency_key": null, "accepted_attempt": null, "queue_timeout_ms": 86400000},
{"id": "job_01KDVDNA0EFR78W3GE1R70W3GE", "key": "key_01KDVDNA02E81840G2081040G2", "kind": "inference", "lane": "[\"llama3\",\"chat\",[],null]", "node": "node_01KDVDNA03EC1R60R30C1G60R3", "epoch": 1, "model": "llama3", "state": "succeeded", "attempt": 1, "replica": "rep_a", "attached": false, "failures": 0, "metadata": {"project": "x"}, "orphaned": false, "priority": 0, "body_hash": null, "operation": "chat", "order_key": 1767225600014, "created_at": 1767225600000, "error_code": null, "not_before": null, "offered_at": 1795710784040, "request_id": "req_01KDVDNA0EFR78W3GE1R70W3GE", "started_at": 1795710784050, "deadline_at": null, "finished_at": 4102444800000, "max_attempts": 3, "on_node_loss": "requeue", "error_message": null, "result_digest": "d1", "run_timeout_ms": 600000, "idempotency_key": null, "accepted_attempt": 1, "queue_timeout_ms": 86400000},
{"id": "job_01KDVDNA0FFW7RY3RF1W7GY3RF", "key": "key_01KDVDNA02E81840G2081040G2", "kind": "inference", "lane": null, "node": null, "epoch": null, "model": "llama3", "state": "succeeded", "attempt": 0, "replica": "rep_a", "attached": true, "failures": 0, "metadata": null, "orphaned": false, "priority": null, "body_hash": null, "operation": "chat", "order_key": 1767225600000, "created_at": 1767225600000, "error_code": null, "not_before": null, "offered_at": null, "request_id": "req_01KDVDNA0FFW7RY3RF1W7GY3RF", "started_at": null, "deadline_at": null, "finished_at": 4102444800000, "max_attempts": null, "on_node_loss": null, "error_message": null, "result_digest": null, "run_timeout_ms": null, "idempotency_key": null, "accepted_attempt": null, "queue_timeout_ms": null}
]$rows$);

delete from node_credentials;

insert into node_credentials select * from jsonb_populate_recordset(null::node_credentials, $rows$[
{"id": "cred_01KDVDNA05EM2RA1850M2GA185", "hash": "ccbf82bcb6ecd46763e2320fbbe75396bb2a9e85c458e367668d91c3a1b46c35", "node": "node_01KDVDNA03EC1R60R30C1G60R3", "created_at": 1767225600000, "expires_at": null}
]$rows$);

delete from node_liveness;

insert into node_liveness select * from jsonb_populate_recordset(null::node_liveness, $rows$[
{"node": "node_01KDVDNA03EC1R60R30C1G60R3", "epoch": 1, "state": "online", "replica": "rep_01KDVDNA06ER38C1G60R30C1G6", "changed_at": 1767225600000, "close_reason": null, "last_seen_at": null}
]$rows$);

delete from nodes;

insert into nodes select * from jsonb_populate_recordset(null::nodes, $rows$[
{"id": "node_01KDVDNA03EC1R60R30C1G60R3", "name": "attic", "labels": {"room": "attic"}, "cordoned": false, "created_at": 1767225600000, "descriptor": null, "revoked_at": null, "allowed_models": [], "descriptor_hash": null, "drain_deadline_at": null}
]$rows$);

delete from replicas;

insert into replicas select * from jsonb_populate_recordset(null::replicas, $rows$[
{"id": "rep_01KDVDNA06ER38C1G60R30C1G6", "bumps": 1, "bumped_at": 1795710783992, "started_at": 1795710783992}
]$rows$);

delete from schema_migrations;

insert into schema_migrations select * from jsonb_populate_recordset(null::schema_migrations, $rows$[
{"name": "initial", "version": 1, "applied_at": 1795710783900}
]$rows$);

delete from usage;

insert into usage select * from jsonb_populate_recordset(null::usage, $rows$[
{"job": "job_01KDVDNA0EFR78W3GE1R70W3GE", "key": "key_01KDVDNA02E81840G2081040G2", "node": "node_01KDVDNA03EC1R60R30C1G60R3", "model": "llama3", "status": 200, "outcome": "succeeded", "attempts": 1, "queue_ms": 2, "total_ms": 300, "estimated": false, "operation": "chat", "created_at": 4102444800000, "request_id": "req_01KDVDNA00EETBV21C4T02YVQW", "cached_tokens": 0, "first_byte_ms": 40, "prompt_tokens": 120, "completion_tokens": 300},
{"job": "job_01KDVDNA0FFW7RY3RF1W7GY3RF", "key": "key_01KDVDNA02E81840G2081040G2", "node": "node_01KDVDNA03EC1R60R30C1G60R3", "model": "llama3", "status": 200, "outcome": "succeeded", "attempts": 1, "queue_ms": 2, "total_ms": 300, "estimated": false, "operation": "chat", "created_at": 4102444800000, "request_id": "req_01KDVDNA0FFW7RY3RF1W7GY3RF", "cached_tokens": 0, "first_byte_ms": 40, "prompt_tokens": 120, "completion_tokens": 300}
]$rows$);

