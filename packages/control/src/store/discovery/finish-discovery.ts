import type { DiscoveryEnd } from '@flotilla/core';
import { encode } from '../json.ts';
import { NOW_MS, prepared, type Sql } from '../sql.ts';
import { IS_OPEN } from './row.ts';

/** Whatever ends an open request first has ended it. `before` is what it was when the statement began. */
const finish = prepared(
  'finish-discovery',
  `with now as materialized (select ${NOW_MS} as ms),
   done as (
     update model_discoveries d
     set state = $3, reason = $4::text, stage = coalesce($5::text, d.stage),
       waiting_for = case when $5::text is null then d.waiting_for else $6::text end, results = $7::jsonb,
       finished_at = now.ms
     from now where d.id = $1 and d.node = $2 and d.${IS_OPEN}
     returning d.node),
   kept as (
     insert into model_catalogues (node, backend, kind, version, models, models_total, discovered_at)
     select done.node, r.backend, r.kind, r.version, r.models, r.models_total, now.ms
     from now, done, jsonb_to_recordset($8::jsonb)
       as r (backend text, kind text, version text, models jsonb, models_total bigint)
     on conflict (node, backend) do update set kind = excluded.kind, version = excluded.version,
       models = excluded.models, models_total = excluded.models_total, discovered_at = excluded.discovered_at),
   before as materialized (select node, results from model_discoveries where id = $1)
   select (select count(*) from done) as done,
     (select jsonb_array_length(results) from before where node = $2) as told_before`,
);

/** A node that calls its backends otherwise each time does not fill the store: so many can a descriptor have. */
const trim = prepared(
  'trim-catalogues',
  `delete from model_catalogues where node = $1 and backend in (
     select backend from model_catalogues where node = $1 order by discovered_at desc, backend offset 256)`,
);

export function finishDiscovery(sql: Sql, end: DiscoveryEnd): Promise<'accepted' | 'duplicate' | 'stale'> {
  const { id, node, state, reason, stage, waiting_for, results } = end;
  const listed = results.flatMap((told) => (told.outcome === 'listed' ? [told] : []));
  return sql.transaction(async (tx) => {
    const params = [id, node, state, reason, stage, waiting_for, encode(results), encode(listed)];
    const [row] = await tx.query<{ done: number; told_before: number | null }>(finish, params);
    if (row !== undefined && row.done > 0) {
      if (listed.length > 0) await tx.query(trim, [node]);
      return 'accepted';
    }
    // Nothing was told before it ended: the deadline, or the loss of the node, was first.
    return (row?.told_before ?? 0) > 0 ? 'duplicate' : 'stale';
  });
}
