import type { Node } from '@flotilla/sdk';
import { ago } from './moment.ts';
import { type Column, facts, table, terminalColumns } from './table.ts';
import { labelText } from './text.ts';

export function nodeTable(nodes: Node[]): string {
  return table(nodes, COLUMNS, terminalColumns());
}

const COLUMNS: Column<Node>[] = [
  { head: 'NAME', cell: (node) => node.name, flexible: true },
  { head: 'STATE', cell: stateOf, style: (node) => styleOf(node.state) },
  { head: 'HEALTH', cell: (node) => node.health, style: (node) => styleOf(node.health) },
  { head: 'SLOTS', cell: slotsOf, align: 'right' },
  { head: 'MODELS', cell: (node) => modelsOf(node).join(', '), flexible: true },
  { head: 'SEEN', cell: (node) => ago(node.last_seen_at) },
  { head: 'WHY', cell: (node) => (isWell(node) ? '' : node.why.summary), flexible: true },
];

function styleOf(state: string): 'green' | 'yellow' | 'red' | 'dim' {
  if (state === 'online' || state === 'healthy') return 'green';
  if (state === 'suspect' || state === 'degraded' || state === 'pending') return 'yellow';
  return state === 'revoked' ? 'dim' : 'red';
}

/** Liveness, and the operator's wish beside it. */
function stateOf(node: Node): string {
  if (node.drain) return `${node.state}, drains`;
  return node.cordoned ? `${node.state}, cordoned` : node.state;
}

function isWell(node: Node): boolean {
  return node.state === 'online' && node.health === 'healthy' && !node.cordoned;
}

/** Reserved of all, over its pools. */
function slotsOf(node: Node): string {
  const sum = (field: 'reserved' | 'capacity') => node.pools.reduce((total, pool) => total + pool[field], 0);
  return `${sum('reserved')}/${sum('capacity')}`;
}

function modelsOf(node: Node): string[] {
  const served = node.backends.flatMap(({ models }) => models.filter(({ allowed }) => allowed));
  return [...new Set(served.map(({ id }) => id))];
}

/** One node, told whole. */
export function nodeText(node: Node): string {
  const { why } = node;
  const parts = [
    facts([
      ['id', node.id],
      ['name', node.name],
      ['state', stateOf(node)],
      ['health', node.health],
      ['why', why.summary],
      ['drain', node.drain && `${node.drain.in_flight} at work, until ${node.drain.deadline_at}`],
      [
        'last beat',
        why.last_beat_ms_ago === null
          ? 'never'
          : ago(new Date(Date.now() - why.last_beat_ms_ago).toISOString()),
      ],
      ['missed beats', why.missed_beats === 0 ? null : String(why.missed_beats)],
      ['closed', why.close_reason],
      ['labels', labelText(node.labels)],
      ['region', node.region],
      ['version', node.version],
      ['platform', node.platform],
      ['may serve', node.allowed_models.join(', ') || 'all models'],
      ['enrolled', ago(node.created_at)],
      ['connected', node.connected_at && ago(node.connected_at)],
      ['replica', node.replica ?? null],
    ]),
    list('Failing probes', why.failing_probes),
    list('Warnings', why.warnings),
    list('Alarms', why.alarms),
    node.pools.length === 0 ? '' : poolTable(node),
    node.backends.length === 0 ? 'No backends: it has found no model server.' : modelTable(node),
  ];
  return parts.filter((part) => part !== '').join('\n\n');
}

function list(title: string, lines: string[]): string {
  return lines.length === 0 ? '' : `${title}:\n${lines.map((line) => `  ${line}`).join('\n')}`;
}

function poolTable(node: Node): string {
  const columns: Column<Node['pools'][number]>[] = [
    { head: 'POOL', cell: (pool) => pool.id, flexible: true },
    { head: 'RESERVED', cell: (pool) => String(pool.reserved), align: 'right' },
    {
      head: 'NODE COUNTS',
      cell: (pool) => (pool.reported === null ? '–' : String(pool.reported)),
      align: 'right',
    },
    { head: 'CAPACITY', cell: (pool) => String(pool.capacity), align: 'right' },
    { head: 'FROM', cell: (pool) => pool.capacity_from },
  ];
  return table(node.pools, columns, terminalColumns());
}

type ModelRow = Node['backends'][number]['models'][number] & { backend: string };

function modelTable(node: Node): string {
  const rows = node.backends.flatMap((backend): ModelRow[] => {
    const label = `${backend.id} (${backend.kind}${backend.version === null ? '' : ` ${backend.version}`})`;
    const models = backend.models.map((model) => ({
      ...model,
      backend: label,
      reason: model.reason ?? backend.reason,
    }));
    if (models.length > 0) return models;
    const { health, reason } = backend;
    return [{ id: '–', operations: [], loaded: null, health, reason, allowed: true, backend: label }];
  });
  const columns: Column<ModelRow>[] = [
    { head: 'BACKEND', cell: (row) => row.backend, flexible: true },
    { head: 'MODEL', cell: (row) => row.id, flexible: true },
    { head: 'HEALTH', cell: (row) => row.health, style: (row) => styleOf(row.health) },
    { head: 'LOADED', cell: (row) => (row.loaded === null ? '–' : row.loaded ? 'yes' : 'no') },
    { head: 'DOES', cell: (row) => row.operations.join(','), flexible: true },
    {
      head: 'NOTE',
      cell: (row) => row.reason ?? (row.allowed ? '' : 'not allowed on this node'),
      flexible: true,
    },
  ];
  return table(rows, columns, terminalColumns());
}
