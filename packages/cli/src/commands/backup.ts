import type { Command } from 'commander';
import { confirmReplace } from '../backup/confirm.ts';
import { placeAt, placeName, placeOf, type PlaceFlags } from '../backup/place.ts';
import { noteRestored, printTables, SECRET_KEY } from '../backup/report.ts';
import { compressed, refuseTaken, saveBackup } from '../backup/save.ts';
import { type ClientFlags, openClient, withClient } from '../client.ts';
import { withExamples, withNote } from '../help.ts';
import { stopSignal } from '../process-end.ts';
import { note, printJson } from '../terminal/output.ts';

export function addBackup(program: Command): void {
  const backup = program
    .command('backup [file]')
    .description(
      'save the whole store, as it is at one moment, into one file; also while requests are served',
    )
    .option('--from <place>', 'not through a control plane: a stopped data directory, or postgres://…')
    .option('--force', 'give up a file of that name')
    .action(takeBackup);
  withExamples(
    withClient(backup),
    ['flotilla backup', 'flotilla-<time>.backup in this folder, of the control plane that runs here'],
    [
      'flotilla backup /mnt/nas/fleet.backup --url https://fleet.example',
      'of another one, with an admin key',
    ],
    ['flotilla backup --from ~/.flotilla', 'of a control plane that is stopped'],
  );
  withNote(
    backup,
    'The file is for its owner only (0600). Keys and credentials are in it as hashes, upstream keys sealed; prompts ' +
      'and answers of detached jobs that are not erased yet are in clear. It reads on PGlite and on PostgreSQL.',
  );
}

interface BackupFlags extends ClientFlags {
  from?: string;
  force?: boolean;
}

async function takeBackup(named: string | undefined, flags: BackupFlags): Promise<void> {
  const file = named ?? `flotilla-${new Date().toISOString().slice(0, 19).replaceAll(':', '')}Z.backup`;
  if (flags.force !== true) await refuseTaken(file);
  const { checkBackup } = await import('@flotilla/control');
  if (flags.json !== true) note(`Saving the store into ${file} …`);
  const stop = new AbortController();
  void stopSignal().then(() => stop.abort());
  const source =
    flags.from === undefined ? await fromControl(flags, stop.signal) : await fromPlace(flags.from);
  const { signal } = stop;
  const { head, tables } = await saveBackup({
    file,
    force: flags.force === true,
    source,
    check: checkBackup,
    signal,
  });
  if (flags.json) return printJson({ file, ...head, tables });
  printTables(tables);
  note(`${file}: everything as it was at ${head.created_at}, read back and found whole.`);
  note(`Keep it like a secret, and ${SECRET_KEY} somewhere else: sealed values need both.`);
}

async function fromControl(flags: BackupFlags, signal: AbortSignal): Promise<AsyncIterable<Uint8Array>> {
  const client = await openClient(flags);
  return client.backup({ signal });
}

async function fromPlace(from: string): Promise<AsyncIterable<Uint8Array>> {
  const { backupOf, openLog } = await import('@flotilla/control');
  return compressed(backupOf(placeAt(from), openLog('warn')));
}

interface RestoreFlags extends PlaceFlags {
  replace?: boolean;
  json?: boolean;
}

export function addRestore(program: Command): void {
  const restore = program
    .command('restore <file>')
    .description('put a backup into an empty store that no control plane has open')
    .option('--data-dir <dir>', 'the embedded store there (FLOTILLA_DATA_DIR, else ~/.flotilla)')
    .option('--database-url <url>', 'a PostgreSQL database (DATABASE_URL)')
    .option('--replace', 'give up what is in that store now')
    .option('--json', 'print JSON, for programs')
    .action(restoreFile);
  withExamples(
    restore,
    ['flotilla restore fleet.backup', 'into the data directory of this machine'],
    [
      'DATABASE_URL=postgres://… flotilla restore fleet.backup',
      'into a database, whichever store it was taken from',
    ],
    ['flotilla restore fleet.backup --replace', 'over a store that has something in it'],
  );
  withNote(
    restore,
    'The file is read to its end and checked first, what was restored is compared with it, and all of it happens or ' +
      'nothing does. Detached jobs that nodes had at work go back to the queue.',
  );
}

async function restoreFile(file: string, flags: RestoreFlags): Promise<void> {
  const { openLog, restoreBackup } = await import('@flotilla/control');
  const place = placeOf(flags);
  if (flags.replace === true) await confirmReplace(placeName(place));
  note(`Restoring into ${placeName(place)} …`);
  const restored = await restoreBackup(file, place, {
    log: openLog('warn'),
    heartbeat_ms: heartbeatMs(),
    replace: flags.replace === true,
  });
  if (flags.json) return printJson({ place: placeName(place), ...restored });
  printTables(restored.tables);
  note(`${placeName(place)} has everything as it was at ${restored.head.created_at}.`);
  noteRestored(restored);
}

const HEARTBEAT_MS = 5000;

/** What the nodes of the source had; told to this command as to a control plane. */
export function heartbeatMs(): number {
  const given = Number(process.env['FLOTILLA_HEARTBEAT_MS']);
  return Number.isSafeInteger(given) && given > 0 ? given : HEARTBEAT_MS;
}
