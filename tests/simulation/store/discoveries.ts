import type {
  CatalogueRecord,
  DiscoveryEnd,
  DiscoveryNote,
  DiscoveryRecord,
  NewDiscovery,
} from '@flotilla/core';
import { DISCOVERY_STAGES } from '@flotilla/protocol';
import { notUnique } from './failure.ts';
import { bytewise, type DiscoveryRow, type Tables } from './tables.ts';

/** Who asks again so soon after a refusal is told the same. */
const SAME_REFUSAL_MS = 1000;
/** So many backends can a descriptor have. */
const MOST_CATALOGUES = 256;

export function openDiscovery(tables: Tables, request: NewDiscovery): DiscoveryRecord {
  const { id, node, timeout_ms, refused } = request;
  const backend = request.backend ?? '';
  const now = tables.now_ms();
  const own = [...tables.discoveries.values()].filter((row) => row.node === node && row.backend === backend);
  if (refused !== null) {
    const last = own.toSorted((a, b) => bytewise(a.id, b.id)).at(-1);
    const same = last?.reason === refused && last.stage === 'pending';
    if (same && (last.finished_at ?? 0) > now - SAME_REFUSAL_MS) return record(tables, last);
  }
  const open = own.find(isOpen);
  const late = open !== undefined && open.expires_at <= now;
  if (open !== undefined && !late && refused === null) return record(tables, open);
  if (tables.discoveries.has(id)) throw notUnique('model_discoveries', id);
  if (late) timeOut(tables, open);
  const made: DiscoveryRow = {
    id,
    node,
    backend,
    state: refused === null ? 'pending' : 'failed',
    stage: 'pending',
    waiting_for: null,
    reason: refused,
    results: [],
    created_at: now,
    expires_at: now + timeout_ms,
    finished_at: refused === null ? null : now,
  };
  tables.discoveries.set(id, made);
  return record(tables, made);
}

export function noteDiscoveries(tables: Tables, notes: DiscoveryNote[]): void {
  for (const { id, node, stage, waiting_for } of notes) {
    const row = tables.discoveries.get(id);
    if (row === undefined || row.node !== node || !isOpen(row)) continue;
    if (DISCOVERY_STAGES.indexOf(row.stage) > DISCOVERY_STAGES.indexOf(stage)) continue;
    tables.discoveries.set(id, { ...row, state: 'running', stage, waiting_for });
  }
}

export function finishDiscovery(tables: Tables, end: DiscoveryEnd): 'accepted' | 'duplicate' | 'stale' {
  const row = tables.discoveries.get(end.id);
  if (row === undefined || row.node !== end.node) return 'stale';
  if (!isOpen(row)) return row.results.length > 0 ? 'duplicate' : 'stale';
  const now = tables.now_ms();
  tables.discoveries.set(end.id, {
    ...row,
    state: end.state,
    reason: end.reason,
    stage: end.stage ?? row.stage,
    waiting_for: end.stage === null ? row.waiting_for : end.waiting_for,
    results: end.results,
    finished_at: now,
  });
  const listed = end.results.flatMap((told) => (told.outcome === 'listed' ? [told] : []));
  if (listed.length > 0) keepLists(tables, end.node, listed, now);
  return 'accepted';
}

function keepLists(
  tables: Tables,
  node: string,
  listed: Extract<DiscoveryEnd['results'][number], { outcome: 'listed' }>[],
  now: number,
): void {
  const catalogues = tables.catalogues.get(node) ?? new Map();
  for (const { backend, kind, version, models, models_total } of listed) {
    catalogues.set(backend, {
      backend,
      kind,
      version: version ?? null,
      models,
      models_total,
      discovered_at: now,
    });
  }
  const newest = [...catalogues.values()]
    .sort((a, b) => b.discovered_at - a.discovered_at || bytewise(a.backend, b.backend))
    .slice(0, MOST_CATALOGUES);
  tables.catalogues.set(node, new Map(newest.map((row) => [row.backend, row])));
}

export function openDiscoveries(tables: Tables, limit: number): DiscoveryRecord[] {
  const now = tables.now_ms();
  const oldestFirst = () =>
    [...tables.discoveries.values()].filter(isOpen).sort((a, b) => a.expires_at - b.expires_at);
  const late = oldestFirst().filter(({ expires_at }) => expires_at <= now);
  for (const row of late.slice(0, limit)) timeOut(tables, row);
  return oldestFirst()
    .slice(0, limit)
    .map((row) => record(tables, row));
}

export function findDiscovery(tables: Tables, id: string): DiscoveryRecord | undefined {
  const row = tables.discoveries.get(id);
  return row && record(tables, row);
}

export function loadCatalogues(tables: Tables, node: string): CatalogueRecord[] {
  return [...(tables.catalogues.get(node)?.values() ?? [])]
    .sort((a, b) => bytewise(a.backend, b.backend))
    .map((row) => ({ ...structuredClone(row), age_ms: tables.now_ms() - row.discovered_at }));
}

function isOpen({ state }: DiscoveryRow): boolean {
  return state === 'pending' || state === 'running';
}

function timeOut(tables: Tables, row: DiscoveryRow): void {
  const finished_at = tables.now_ms();
  tables.discoveries.set(row.id, { ...row, state: 'timed_out', reason: 'timed_out', finished_at });
}

function record(tables: Tables, row: DiscoveryRow): DiscoveryRecord {
  const backend = row.backend === '' ? null : row.backend;
  return { ...structuredClone(row), backend, left_ms: row.expires_at - tables.now_ms() };
}
