import type { Sql } from '../../packages/control/src/store/sql.ts';
import type { Database } from './store/database.ts';
import { bytewise } from './store/tables.ts';

/** All that is committed, table by table, in one order: to compare the simulation's store with one of SQL. */

const TABLES = {
  configuration: 'version',
  jobs: 'id',
  attempts: 'job, attempt',
  job_bodies: 'job',
  usage: 'job',
  swept_usage: 'key, day',
  enrolment_tokens: 'id',
  nodes: 'id',
  node_liveness: 'node',
  node_credentials: 'id',
  replicas: 'id',
  model_discoveries: 'id',
  model_catalogues: 'node, backend',
};
/** What no program reads, or is not the same in two stores. */
const UNREAD = ['one', 'installation', 'started_at', 'bumped_at'];

export async function rowsBeneath(sql: Sql): Promise<unknown> {
  const parts = Object.entries(TABLES).map(([table, order]) => {
    const left_out = UNREAD.filter((column) => column !== 'started_at' || table === 'replicas');
    const row = left_out.reduce((text, column) => `${text} - '${column}'`, 'to_jsonb(t)');
    return `coalesce((select jsonb_agg(${row} order by ${order}) from ${table} t), '[]') as ${table}`;
  });
  const [rows] = await sql.query(`select ${parts.join(', ')}`);
  return rows;
}

export async function emptyBeneath(sql: Sql): Promise<void> {
  const tables = Object.keys(TABLES).filter((table) => table !== 'configuration');
  const parts = tables.map((table) => `${table}_gone as (delete from ${table})`);
  await sql.query(`with ${parts.join(', ')} update configuration set version = 1, fleet = 0`);
}

export function rowsOf({ tables }: Database): unknown {
  const nodes = inOrder(tables.nodes.values(), ({ id }) => id);
  return {
    configuration: [{ version: tables.version, fleet: tables.fleet }],
    jobs: inOrder(tables.jobs.all(), ({ id }) => id),
    attempts: inOrder(
      [...tables.attempts].flatMap(([job, stories]) =>
        [...stories.values()].map((story) => ({ job, ...story })),
      ),
      ({ job, attempt }) => `${job} ${padded(attempt)}`,
    ),
    job_bodies: inOrder(
      [...tables.bodies].map(([job, body]) => ({ job, ...body })),
      ({ job }) => job,
    ),
    usage: inOrder(tables.usage.values(), ({ job }) => job),
    swept_usage: inOrder(
      [...tables.swept_usage].flatMap(([key, days]) =>
        [...days].map(([day, tokens]) => ({ key, day, tokens })),
      ),
      ({ key, day }) => `${key} ${padded(day)}`,
    ),
    enrolment_tokens: inOrder(tables.tokens.values(), ({ id }) => id),
    nodes: nodes.map(
      ({
        state: _1,
        epoch: _2,
        replica: _3,
        close_reason: _4,
        changed_at: _5,
        last_seen_at: _6,
        moved: _7,
        health: _8,
        ...row
      }) => row,
    ),
    node_liveness: nodes.map(
      ({ id: node, state, epoch, replica, close_reason, changed_at, last_seen_at, moved, health }) => ({
        node,
        state,
        epoch,
        replica,
        close_reason,
        changed_at,
        last_seen_at,
        moved,
        health,
      }),
    ),
    node_credentials: inOrder(tables.credentials.values(), ({ id }) => id),
    replicas: inOrder(tables.replicas.values(), ({ id }) => id),
    model_discoveries: inOrder(tables.discoveries.values(), ({ id }) => id),
    model_catalogues: inOrder(
      [...tables.catalogues].flatMap(([node, backends]) =>
        [...backends.values()].map((row) => ({ node, ...row })),
      ),
      ({ node, backend }) => `${node} ${backend}`,
    ),
  };
}

function inOrder<Row>(rows: Iterable<Row>, id: (row: Row) => string): Row[] {
  return [...rows].sort((a, b) => bytewise(id(a), id(b)));
}

function padded(number: number): string {
  return String(number).padStart(20);
}
