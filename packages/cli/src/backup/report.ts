import type { Restored } from '@flotilla/control';
import { note } from '../terminal/output.ts';
import { type Column, table, terminalColumns } from '../terminal/table.ts';
import { plural } from '../terminal/text.ts';
import { print } from '../terminal/output.ts';

type Tables = Restored['tables'];

const COLUMNS: Column<[string, Tables[string]]>[] = [
  { head: 'TABLE', cell: ([name]) => name, whole: true },
  { head: 'ROWS', cell: ([, { rows }]) => rows.toLocaleString('en'), align: 'right' },
  { head: 'DIGEST', cell: ([, { digest }]) => digest, optional: true },
];

export function printTables(tables: Tables): void {
  print(table(Object.entries(tables), COLUMNS, terminalColumns()));
}

/** As its owner knows it: a setting of theirs, or the file that `flotilla up` has made without asking. */
export const SECRET_KEY =
  "FLOTILLA_SECRET_KEY (of `flotilla up`: the file 'secret-key' in its data directory)";

/** What is different from now on, and what a backup never holds. */
export function noteRestored({ requeued, kept }: Restored): void {
  if (requeued > 0)
    note(`${plural(requeued, 'detached job')} that nodes had at work went back to the queue.`);
  if (kept !== null) note(`The store that was there lies in ${kept}; delete it once all is well.`);
  note('Nodes come back by themselves if the control plane has its old address. No backup holds its old');
  note(`${SECRET_KEY}: without it, it does not start on what is sealed with it.`);
}
