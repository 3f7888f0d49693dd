import type { Act, AuditRecord, Clock, Random, Store } from '@flotilla/core';
import { type AuditView, makeId } from '@flotilla/protocol';
import type { AddressOf } from './client-address.ts';
import { iso } from './iso.ts';
import { pageRequest } from './paging.ts';
import type { Audited, Handlers } from './routing.ts';

export interface AuditDeps {
  store: Pick<Store, 'act' | 'listAudit'>;
  clock: Clock;
  random: Random;
  addressOf: AddressOf;
}

/**
 * Runs what a route with an `audit` name does as an act with a row. Of who may use such a route without being an admin
 * (a key that cancels its own job) nothing is kept; of a machine that enrols only that it did, since what strangers try
 * would fill the table.
 */
export function auditing({ store, clock, random, addressOf }: AuditDeps): Audited {
  return (action, { principal, params, body, request }, run) => {
    if (principal !== null && !principal.admin) return run();
    const at = clock.wall_ms();
    const row: AuditRecord = {
      id: makeId('audit', at, random.bytes(10)),
      at,
      action,
      outcome: 'succeeded',
      key: principal?.key.id ?? null,
      key_name: principal?.key.name ?? null,
      address: addressOf(request.raw),
      target: (params as { id?: string } | undefined)?.id ?? null,
      change: changeOf(body),
      request_id: request.id,
    };
    const act: Act = { record: row, keep_refusals: principal !== null };
    return store.act(act, run);
  };
}

export function auditRoutes(store: Pick<Store, 'listAudit'>): Pick<Handlers, 'listAudit'> {
  return {
    async listAudit({ query }) {
      const { limit, after, since, until, key, action, target } = query;
      const filter = {
        ...(key !== undefined && { key }),
        ...(action !== undefined && { action }),
        ...(target !== undefined && { target }),
        ...(since !== undefined && { since: Date.parse(since) }),
        ...(until !== undefined && { until: Date.parse(until) }),
      };
      const page = await store.listAudit(filter, pageRequest({ limit, after }, 'audit'));
      return { data: page.rows.map(auditView), next_after: page.next_after };
    },
  };
}

function auditView(row: AuditRecord): AuditView {
  return { ...row, at: iso(row.at) };
}

/** By name, in whatever request it comes, today's and those of routes to be: more is hidden than has to be. */
const SECRET =
  /(^|_)(api_?key|key|token|secret|password|passphrase|credential|authorization|cookie|headers?)s?$/i;
/** And by its looks, where somebody put one into a name or an address. */
const USER_OF_URL = /(\b\w+:\/\/)[^\s/@]+@/g;
const LIKE_A_KEY = /\b(?:fl[ken]|sk)[-_][\w-]{16,}/g;
const HIDDEN = '[hidden]';
/** A row is for reading; a model list of a thousand names is told as the names of what changed. */
const CHANGE_MAX_BYTES = 16 * 1024;

/** What was asked for, without secrets. */
export function changeOf(body: unknown): Record<string, unknown> {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) return {};
  const text = JSON.stringify(body, (name, value: unknown) => {
    if (SECRET.test(name) && value !== null && typeof value !== 'number') return HIDDEN;
    return typeof value === 'string'
      ? value.replace(USER_OF_URL, `$1${HIDDEN}@`).replace(LIKE_A_KEY, HIDDEN)
      : value;
  });
  if (text.length > CHANGE_MAX_BYTES) return { fields: Object.keys(body).slice(0, 100), too_long: true };
  return JSON.parse(text) as Record<string, unknown>;
}
