import type { Migration } from '../migrate.ts';

/**
 * The tables that a backup holds: those that the migrations make, in their order. Not what the database has: it may be
 * shared with other programs, and a restore drops what it replaces. A test holds this against a real schema
 * (tests/conformance/backup.suite.ts), so that no table of a later migration is left out in silence.
 */
export function tablesOf(migrations: readonly Migration[]): string[] {
  const tables = new Set<string>();
  for (const statement of migrations.flatMap(({ statements }) => statements)) {
    const made = /^\s*create (?:unlogged )?table (?:if not exists )?"?(\w+)/i.exec(statement)?.[1];
    if (made !== undefined) tables.add(made);
    const dropped = /^\s*drop table (?:if exists )?"?(\w+)/i.exec(statement)?.[1];
    if (dropped !== undefined) tables.delete(dropped);
  }
  return [...tables];
}

/** What `migrate` keeps for itself: the schema's version stands in the backup's head. */
export const BOOKKEEPING_TABLE = 'schema_migrations';

/** The migrations that make the schema of a version. */
export function upTo(version: number, migrations: readonly Migration[]): Migration[] {
  return migrations.filter((migration) => migration.version <= version);
}

/** Safe inside a statement whatever it is called. */
export function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}
