import { createHash } from 'node:crypto';
import {
  BACKUP_FORMAT,
  BackupError,
  type BackupEnd,
  backupEnd,
  type BackupHead,
  backupHead,
} from './format.ts';

/**
 * Reads the text of a backup, and believes nothing before it has seen the end:
 *
 *     head ──▶ rows ──▶ end ──▶ nothing more
 *
 * Whoever uses the rows undoes what was done with them when this throws.
 */
export type BackupItem = { head: BackupHead } | { table: string; row: string } | { end: BackupEnd };

/** The largest row that the store has, twice: its text may be escaped. */
const LINE_MAX_BYTES = 128 * 1024 * 1024;
const NEWLINE = 10;

/** @throws BackupError where the text is no backup, is not whole, or is of a newer kind */
export async function* readBackup(pieces: AsyncIterable<Buffer>): AsyncGenerator<BackupItem> {
  const hash = createHash('sha256');
  let head: BackupHead | undefined;
  let end: BackupEnd | undefined;
  for await (const line of splitLines(pieces)) {
    if (end !== undefined) throw damaged('there is more after its end');
    if (head === undefined) {
      head = readHead(line);
      hash.update(line).update('\n');
      yield { head };
      continue;
    }
    const row = readRow(line);
    if (row === undefined) {
      end = readEnd(line);
      if (end.sha256 !== hash.digest('hex')) throw damaged('its checksum does not fit what is in it');
      yield { end };
      continue;
    }
    if (!head.tables.includes(row.table))
      throw damaged(`it has rows of ${row.table}, which its head does not name`);
    hash.update(line).update('\n');
    yield row;
  }
  if (head === undefined) throw damaged('it is empty');
  if (end === undefined) throw damaged('it ends in the middle');
}

async function* splitLines(pieces: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let begun: Buffer[] = [];
  let begun_bytes = 0;
  for await (const piece of pieces) {
    let from = 0;
    for (let at = piece.indexOf(NEWLINE); at >= 0; at = piece.indexOf(NEWLINE, from)) {
      const rest = piece.subarray(from, at);
      yield begun.length === 0 ? rest : Buffer.concat([...begun, rest]);
      begun = [];
      begun_bytes = 0;
      from = at + 1;
    }
    if (from === piece.length) continue;
    begun.push(piece.subarray(from));
    begun_bytes += piece.length - from;
    if (begun_bytes > LINE_MAX_BYTES) throw damaged('a line of it is larger than any row can be');
  }
  if (begun.length > 0) throw damaged('it ends in the middle of a line');
}

function readHead(line: Buffer): BackupHead {
  const parsed = jsonOf(line);
  if (typeof parsed !== 'object' || parsed === null || !('flotilla_backup' in parsed)) {
    throw new BackupError('This is no backup of Flotilla.');
  }
  const format = Number(parsed.flotilla_backup);
  if (format > BACKUP_FORMAT) {
    throw new BackupError(
      `This backup has format ${format}, made by a newer Flotilla; this program reads formats up to ${BACKUP_FORMAT}. ` +
        'Nothing was changed. Restore it with the newer one.',
    );
  }
  const head = backupHead.safeParse(parsed);
  if (!head.success) throw damaged('its head cannot be read');
  return head.data;
}

/** The row's text stays what the database wrote. */
const ROW = /^\{"table":"(\w+)","row":(\{.*\})\}$/s;

function readRow(line: Buffer): { table: string; row: string } | undefined {
  const [, table, row] = ROW.exec(line.toString('utf8')) ?? [];
  return table === undefined || row === undefined ? undefined : { table, row };
}

function readEnd(line: Buffer): BackupEnd {
  const end = backupEnd.safeParse(jsonOf(line));
  if (!end.success) throw damaged('a line of it cannot be read');
  return end.data;
}

function jsonOf(line: Buffer): unknown {
  try {
    return JSON.parse(line.toString('utf8'));
  } catch {
    return undefined;
  }
}

function damaged(how: string): BackupError {
  return new BackupError(
    `This backup is damaged or not whole: ${how}. Nothing was changed; use another one.`,
  );
}
