import { styleText } from 'node:util';
import { fit, oneLine, widthOf } from './text.ts';

type Style = 'green' | 'yellow' | 'red' | 'dim';

export interface Column<T> {
  head: string;
  cell: (row: T) => string;
  align?: 'right';
  /** May be shortened first where the terminal is narrow. */
  flexible?: boolean;
  /** Never shortened: half an id is none. */
  whole?: boolean;
  /** Left out where the terminal is too narrow for all, the last of these first. */
  optional?: boolean;
  style?: (row: T) => Style | undefined;
}

const GAP = '  ';
const NARROWEST = 6;
/** What a column has at least, before an optional one takes room from it. */
const READABLE = 10;

/**
 * Lays rows out in columns. In a terminal no line is wider than it: optional columns go where there is no room for all,
 * flexible ones give way first, then the widest.
 * Elsewhere nothing is shortened and nothing is coloured.
 * @param terminal_columns undefined when the output is no terminal
 */
export function table<T>(
  rows: readonly T[],
  all_columns: readonly Column<T>[],
  terminal_columns?: number,
): string {
  const columns = terminal_columns === undefined ? all_columns : fitting(rows, all_columns, terminal_columns);
  const cells = rows.map((row) => columns.map((column) => oneLine(column.cell(row))));
  const natural = columns.map((column, at) =>
    Math.max(widthOf(column.head), ...cells.map((line) => widthOf(line[at] ?? ''))),
  );
  const widths = terminal_columns === undefined ? natural : shrink(natural, columns, terminal_columns);
  const isTerminal = terminal_columns !== undefined;

  const line = (texts: string[], style: (at: number) => Style | undefined) => {
    const laid = texts.map((text, at) => {
      const shown = fit(text, widths[at] ?? 0);
      const blanks = ' '.repeat(Math.max(0, (widths[at] ?? 0) - widthOf(shown)));
      const wanted = isTerminal ? style(at) : undefined;
      const styled = wanted === undefined ? shown : styleText(wanted, shown);
      return columns[at]?.align === 'right' ? blanks + styled : styled + blanks;
    });
    return laid.join(GAP).trimEnd();
  };
  const head = line(
    columns.map((column) => column.head),
    () => 'dim',
  );
  const body = rows.map((row, at) => line(cells[at] ?? [], (column) => columns[column]?.style?.(row)));
  return [head, ...body].join('\n');
}

function fitting<T>(rows: readonly T[], columns: readonly Column<T>[], most: number): readonly Column<T>[] {
  const least = columns.map((column) => {
    const widest = Math.max(widthOf(column.head), ...rows.map((row) => widthOf(oneLine(column.cell(row)))));
    return column.whole === true ? widest : Math.min(widest, READABLE);
  });
  const total = least.reduce((sum, width) => sum + width, GAP.length * (columns.length - 1));
  const goes = columns.findLastIndex((column) => column.optional === true);
  return total <= most || goes < 0 ? columns : fitting(rows, columns.toSpliced(goes, 1), most);
}

function shrink(natural: number[], columns: readonly Column<never>[], most: number): number[] {
  const widths = [...natural];
  const total = () => widths.reduce((sum, width) => sum + width, GAP.length * (widths.length - 1));
  const narrow = (which: (column: Column<never>) => boolean) => {
    while (total() > most) {
      let widest = -1;
      for (const [at, width] of widths.entries()) {
        if (!which(columns[at]!) || width <= NARROWEST) continue;
        if (widest < 0 || width > (widths[widest] ?? 0)) widest = at;
      }
      if (widest < 0) return;
      widths[widest] = (widths[widest] ?? 0) - 1;
    }
  };
  narrow((column) => column.flexible === true);
  narrow((column) => column.whole !== true);
  return widths;
}

/** Names and values below each other: one thing, told whole. */
export function facts(pairs: readonly (readonly [string, string | null | undefined])[]): string {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== '');
  const width = Math.max(0, ...known.map(([name]) => widthOf(name)));
  return known.map(([name, value]) => `${name.padEnd(width)}  ${oneLine(value ?? '')}`).join('\n');
}

/** What `table` is given for this process's output. */
export function terminalColumns(): number | undefined {
  return process.stdout.isTTY ? process.stdout.columns : undefined;
}
