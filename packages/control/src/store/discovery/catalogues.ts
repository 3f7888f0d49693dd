import type { CatalogueRecord } from '@flotilla/core';
import { NOW_MS, prepared, type Sql } from '../sql.ts';

const load = prepared(
  'load-catalogues',
  `select backend, kind, version, models, models_total, discovered_at, ${NOW_MS} - discovered_at as age_ms
   from model_catalogues where node = $1 order by backend`,
);

export function loadCatalogues(sql: Sql, node: string): Promise<CatalogueRecord[]> {
  return sql.query<CatalogueRecord>(load, [node]);
}
