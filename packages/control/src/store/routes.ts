import type { RoutePatch, RouteRecord, RouteWrite } from '@flotilla/core';
import { administer, holdConfiguration } from './config-version.ts';
import { encode } from './json.ts';
import { assign } from './keys.ts';
import { prepared, type Sql } from './sql.ts';

const COLUMNS = 'id, name, aliases, targets, enabled, created_at';

const load = prepared('load-routes', `select ${COLUMNS} from routes order by id`);

export function loadRoutes(sql: Sql): Promise<RouteRecord[]> {
  return sql.query<RouteRecord>(load);
}

export async function insertRoute(sql: Sql, route: RouteRecord): Promise<RouteWrite> {
  return sql.transaction(async (tx): Promise<RouteWrite> => {
    await holdConfiguration(tx);
    const refused = await conflict(tx, route);
    if (refused !== undefined) return refused;
    await administer(
      tx,
      `insert into routes (${COLUMNS})
       select ${COLUMNS} from jsonb_to_record($1::jsonb) as r (
         id text, name text, aliases jsonb, targets jsonb, enabled boolean, created_at bigint)
       returning id`,
      [encode(route)],
    );
    await takeNames(tx, route);
    return { route };
  });
}

/** What a patch may name, and how its value becomes a parameter. */
const PATCHABLE: Record<keyof RoutePatch, 'plain' | 'jsonb'> = {
  name: 'plain',
  aliases: 'jsonb',
  targets: 'jsonb',
  enabled: 'plain',
};

export async function updateRoute(sql: Sql, id: string, patch: RoutePatch): Promise<RouteWrite> {
  const { assignments, params } = assign(PATCHABLE, patch);
  return sql.transaction(async (tx): Promise<RouteWrite> => {
    await holdConfiguration(tx);
    const [before] = await tx.query<RouteRecord>(`select ${COLUMNS} from routes where id = $1`, [id]);
    if (before === undefined) return { refused: 'unknown' };
    const refused = await conflict(tx, { ...before, ...patch });
    if (refused !== undefined) return refused;
    const change = `update routes set ${assignments} where id = $1 returning ${COLUMNS}`;
    const [route] = await administer<RouteRecord>(tx, change, [id, ...params]);
    await takeNames(tx, route!);
    return { route: route! };
  });
}

export async function deleteRoute(sql: Sql, id: string): Promise<boolean> {
  return sql.transaction(async (tx) => {
    await holdConfiguration(tx);
    await tx.query('delete from route_names where route = $1', [id]);
    return (await administer(tx, 'delete from routes where id = $1 returning id', [id])).length > 0;
  });
}

/** What keeps the route from being so: a name that another one has, a provider that is not there. */
async function conflict(tx: Sql, route: RouteRecord): Promise<RouteWrite | undefined> {
  const names = encode([route.name, ...route.aliases]);
  const [taken] = await tx.query<{ name: string }>(
    `select name from route_names
     where name in (select jsonb_array_elements_text($1::jsonb)) and route <> $2 order by name limit 1`,
    [names, route.id],
  );
  if (taken !== undefined) return { refused: 'name_taken', name: taken.name };
  const wanted = route.targets.flatMap(({ provider }) => (provider === null ? [] : [provider]));
  const [missing] = await tx.query<{ name: string }>(
    `select w.name from jsonb_array_elements_text($1::jsonb) as w (name)
     where not exists (select from providers p where p.id = w.name) limit 1`,
    [encode(wanted)],
  );
  return missing === undefined ? undefined : { refused: 'no_provider', name: missing.name };
}

async function takeNames(tx: Sql, route: RouteRecord): Promise<void> {
  await tx.query('delete from route_names where route = $1', [route.id]);
  await tx.query(`insert into route_names (name, route) select jsonb_array_elements_text($1::jsonb), $2`, [
    encode([route.name, ...route.aliases]),
    route.id,
  ]);
}
