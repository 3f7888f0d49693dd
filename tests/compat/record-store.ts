import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PGlite } from '@electric-sql/pglite';
import type { Store } from '@flotilla/core';
import { hashCredential } from '../../packages/control/src/accounts/credential.ts';
import { MIGRATIONS } from '../../packages/control/src/store/migrations/all.ts';
import { openStore } from '../../packages/control/src/store/open.ts';
import { aDetachedJob, aFinish, aRequeue, claim, fenceOf } from '../conformance/detached-rows.ts';
import { aKey, anEnrolment, aSettlement, aToken } from '../conformance/rows.ts';
import { quiet } from '../support/store.ts';
import { FAR_FUTURE, RECORDED, RECORDED_AT, recordedId, requestOf } from './fleet.ts';

/**
 * `node tests/compat/record-store.ts`: writes the store that this program leaves behind, with work of every state in it,
 * to `store/schema-<version>.sql`. Run once before each release that has a new schema, and never again for that one.
 */
const { admin, key, node, jobs, lane, model } = RECORDED;

const dir = mkdtempSync(join(tmpdir(), 'flotilla-record-'));
const store = await openStore({ data_dir: dir }, quiet);
await fill(store);
await store.close();

const pglite = await PGlite.create(join(dir, 'store'));
// What ends by the clock, or is kept for some days, must still be there whenever this is read.
await pglite.exec(`update jobs set finished_at = ${FAR_FUTURE} where finished_at is not null;
  update usage set created_at = ${FAR_FUTURE};
  update jobs set deadline_at = ${FAR_FUTURE} where deadline_at is not null;
  update jobs set not_before = 1 where not_before is not null;
  update job_bodies set erase_at = ${FAR_FUTURE} where erase_at is not null;`);
const { version } = MIGRATIONS.at(-1)!;
const path = join(import.meta.dirname, 'store', `schema-${version}.sql`);
mkdirSync(join(path, '..'), { recursive: true });
writeFileSync(path, await dump());
await pglite.close();
rmSync(dir, { recursive: true });
process.stdout.write(`${path}\n`);

async function fill(into: Store): Promise<void> {
  await into.insertKey(
    aKey({ id: admin.id, name: 'admin', hash: hashCredential(admin.secret), role: 'admin', scopes: [] }),
  );
  await into.insertKey(
    aKey({
      id: key.id,
      name: 'jobs',
      hash: hashCredential(key.secret),
      allowed_models: [],
      node_labels: {},
      requests_per_minute: null,
    }),
  );
  const token = aToken({
    id: recordedId('enrolmentToken', 4),
    hash: hashCredential('fle_recorded'),
    max_uses: 2,
  });
  await into.insertToken(token);
  const credential = {
    id: recordedId('credential', 5),
    hash: hashCredential(node.credential),
    created_at: RECORDED_AT,
    expires_at: null,
  };
  await into.enrolNode(
    anEnrolment(token.hash, { node: node.id, name: node.name, credential, labels: { room: 'attic' } }),
  );
  const replica = recordedId('replica', 6);
  await into.enterReplica(replica, false);
  await into.takeEpochs(replica, [node.id]);
  await into.saveNodeStates([
    { id: node.id, epoch: 1, state: 'online', close_reason: null, at: RECORDED_AT },
  ]);
  await fillJobs(into);
  await into.settle([
    aSettlement(
      { id: jobs.attached, key: key.id, model, request_id: recordedId('request', 15) },
      { node: node.id },
    ),
  ]);
}

/** Each state is come to as it is in life, so that its row has everything that state has. */
async function fillJobs(into: Store): Promise<void> {
  const accept = (name: keyof typeof jobs, n: number) =>
    into.acceptJobs([
      aDetachedJob({
        id: jobs[name],
        key: key.id,
        model,
        lane,
        order_key: RECORDED_AT + n,
        request_id: recordedId('request', n),
        request: requestOf(name),
        idempotency: name === 'queued' ? RECORDED.idempotency : null,
      }),
    ]);
  const lease = async () => (await claim(into, lane, 1, node.id))[0]!;

  await accept('finished', 14);
  const finished = await lease();
  await into.startJobs([fenceOf(finished)]);
  const usage = aSettlement({ id: jobs.finished, key: key.id, model }, { node: node.id }).usage;
  await into.finishJobs([aFinish(finished, { usage, result: '{"choices":[{"text":"done"}]}' })]);

  await accept('running', 13);
  const running = await lease();
  await into.startJobs([fenceOf(running)]);

  await accept('backing_off', 12);
  const failed = await lease();
  await into.startJobs([fenceOf(failed)]);
  await into.requeueJobs([aRequeue(failed, { delay_ms: 60_000 })]);

  await accept('queued', 10);
  await accept('behind', 11);
}

async function dump(): Promise<string> {
  const applied = MIGRATIONS.flatMap(({ statements }) => statements);
  const tables = await pglite.query<{ name: string }>(
    `select table_name as name from information_schema.tables where table_schema = 'public' order by 1`,
  );
  const rows: string[] = [];
  for (const { name } of tables.rows) {
    const found = await pglite.query<{ row: string }>(
      `select to_jsonb(t)::text as row from ${name} t order by 1`,
    );
    if (found.rows.length === 0) continue;
    const list = found.rows.map(({ row }) => row).join(',\n');
    rows.push(`delete from ${name}`);
    rows.push(
      `insert into ${name} select * from jsonb_populate_recordset(null::${name}, $rows$[\n${list}\n]$rows$)`,
    );
  }
  return [
    `-- The store of schema ${version}, as the program of its time left it. Recorded by tests/compat/record-store.ts: never edited.`,
    `create table schema_migrations (
         version bigint primary key,
         name text not null,
         applied_at bigint not null
       );`,
    ...applied.map((statement) => `${statement};`),
    ...rows.map((statement) => `${statement};`),
    '',
  ].join('\n\n');
}
