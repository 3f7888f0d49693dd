import type { Migration } from '../migrate.ts';

/** Upstream providers, routes to them and to nodes, and which provider served what. */
export const upstreams: Migration = {
  version: 5,
  name: 'upstreams',
  statements: [
    // key_sealed: AES-256-GCM under FLOTILLA_SECRET_KEY, bound to the row's id.
    `create table providers (
       id text collate "C" primary key,
       name text not null unique,
       base_url text not null,
       key_sealed text,
       key_header text not null,
       labels jsonb not null,
       concurrency bigint not null,
       enabled boolean not null,
       probe text not null,
       connect_timeout_ms bigint,
       first_byte_timeout_ms bigint,
       idle_timeout_ms bigint,
       created_at bigint not null
     )`,
    `create table routes (
       id text collate "C" primary key,
       name text not null,
       aliases jsonb not null,
       targets jsonb not null,
       enabled boolean not null,
       created_at bigint not null
     )`,
    // Names and aliases are one space: whatever a client asks for means one route.
    `create table route_names (
       name text primary key,
       route text collate "C" not null
     )`,
    `create index route_names_by_route on route_names (route)`,
    // What the installation's secret key has sealed at its first start, so that another key is found out at once.
    `create table secret_canary (
       one boolean primary key default true check (one),
       sealed text not null
     )`,
    `alter table attempts add column provider text collate "C"`,
    `alter table usage add column provider text collate "C"`,
    `create index usage_by_provider on usage (provider, created_at, job) where provider is not null`,
  ],
};
