import type { Command } from 'commander';
import { confirmReplace } from '../backup/confirm.ts';
import { placeAt, placeName, placeOf } from '../backup/place.ts';
import { noteRestored, printTables } from '../backup/report.ts';
import { UsageError } from '../failure.ts';
import { withExamples, withNote } from '../help.ts';
import { note, printJson } from '../terminal/output.ts';
import { heartbeatMs } from './backup.ts';

export function addStore(program: Command): void {
  const store = program.command('store').description('the store itself: copy it to another place');
  const copy = store
    .command('copy')
    .description('copy a store that no control plane has open to another one, and compare the two')
    .requiredOption('--to <place>', 'postgres://…, or a data directory; empty, or with --replace')
    .option('--from <place>', 'the same (DATABASE_URL, else FLOTILLA_DATA_DIR, else ~/.flotilla)')
    .option('--replace', 'give up what is in the other store now')
    .option('--json', 'print JSON, for programs')
    .action(copyStore);
  withExamples(
    copy,
    ['flotilla store copy --from ~/.flotilla --to postgres://…', 'from the embedded store to PostgreSQL'],
    ['flotilla store copy --from postgres://… --to ./fleet', 'and back'],
  );
  withNote(
    copy,
    'The source is left as it is. Every table is read back and compared, by the number of its rows and by what is in ' +
      'them, before the copy counts; then start the control plane on the new place, and never again on the old one.',
  );
}

interface CopyFlags {
  to: string;
  from?: string;
  replace?: boolean;
  json?: boolean;
}

async function copyStore(flags: CopyFlags): Promise<void> {
  const { copyStore: copy, openLog } = await import('@flotilla/control');
  const from = flags.from === undefined ? placeOf({}) : placeAt(flags.from);
  const to = placeAt(flags.to);
  if (JSON.stringify(from) === JSON.stringify(to))
    throw new UsageError('--from and --to are the same place.');
  if (flags.replace === true) await confirmReplace(placeName(to));
  note(`Copying ${placeName(from)} to ${placeName(to)} …`);
  const copied = await copy(from, to, {
    log: openLog('warn'),
    heartbeat_ms: heartbeatMs(),
    replace: flags.replace === true,
  });
  if (flags.json) return printJson({ from: placeName(from), to: placeName(to), ...copied });
  printTables(copied.tables);
  note(`${placeName(to)} has every row of ${placeName(from)}, compared table by table.`);
  noteRestored(copied);
}
