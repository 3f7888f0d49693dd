import { mkdir, writeFile } from 'node:fs/promises';
import { BUSY, hardware } from './hardware.ts';
import type { Spread } from './histogram.ts';
import type { Paired } from './rounds.ts';

/** What a scenario has found: kept as JSON for machines and as a page for people, with its plots beside it. */
export interface Report {
  /** Of the files: `paths`. */
  name: string;
  title: string;
  /** What was done, and what shared the machine with it; in whole sentences. */
  about: string;
  goals: Goal[];
  tables: Table[];
  plots: Plot[];
  /** What the tables are made of. */
  data: unknown;
}

export interface Goal {
  what: string;
  goal: string;
  measured: string;
  /** Null: not measured here, and `measured` says why. */
  reached: boolean | null;
}

export interface Table {
  title: string;
  columns: string[];
  rows: string[][];
}

interface Plot {
  /** Of the file, after the scenario's name. */
  name: string;
  title: string;
  svg: string;
}

const RESULTS = new URL('results/', import.meta.url);

/** @param busy_share the most that others had of the processors, before the scenario or after it */
export async function keep(report: Report, busy_share: number): Promise<string> {
  await mkdir(RESULTS, { recursive: true });
  const { name, plots, goals, data } = report;
  for (const plot of plots) await writeFile(new URL(`${name}-${plot.name}.svg`, RESULTS), plot.svg);
  const json = { name, ...circumstances(busy_share), goals, data };
  await writeFile(new URL(`${name}.json`, RESULTS), `${JSON.stringify(json, null, 1)}\n`);
  const page = pageOf(report, busy_share);
  await writeFile(new URL(`${name}.md`, RESULTS), page);
  return page;
}

function circumstances(busy_share: number) {
  const date = new Date().toISOString().slice(0, 10);
  return { date, hardware: hardware(), busy_share: Number(busy_share.toFixed(2)) };
}

export function pageOf(report: Report, busy_share: number): string {
  const { name, title, about, goals, tables, plots } = report;
  const { date, hardware: machine } = circumstances(busy_share);
  const busy =
    busy_share > BUSY
      ? `\n**Others took ${Math.round(busy_share * 100)} % of the processors: these figures are of a busy machine.**\n`
      : '';
  const parts = [
    `# ${title}`,
    `${about}`,
    `Measured on ${date} on ${machine}, with \`npm run bench -- ${name}\`.${busy}`,
  ];
  if (goals.length > 0) {
    const rows = goals.map(({ what, goal, measured, reached }) => [
      what,
      goal,
      measured,
      reached === null ? 'not measured' : reached ? 'yes' : '**no**',
    ]);
    parts.push(tableOf({ title: 'Goals', columns: ['', 'goal', 'measured', 'reached'], rows }));
  }
  parts.push(...tables.map(tableOf));
  parts.push(...plots.map((plot) => `![${plot.title}](${name}-${plot.name}.svg)`));
  return `${parts.join('\n\n')}\n`;
}

function tableOf({ title, columns, rows }: Table): string {
  const line = (cells: string[]) => `| ${cells.join(' | ')} |`;
  return [`## ${title}\n`, line(columns), line(columns.map(() => '---')), ...rows.map(line)].join('\n');
}

/** The three digits that a measurement of this kind can hold. */
export function figure(value: number, digits = 3): string {
  if (!Number.isFinite(value)) return '–';
  if (value >= 1000) return Math.round(value).toLocaleString('en');
  return String(Number(value.toPrecision(digits)));
}

/** `0.83 (0.79 to 0.88)` */
export function spread({ median, low, high }: Paired, unit = ''): string {
  return `${figure(median)}${unit} (${figure(low)} to ${figure(high)})`;
}

/** p50, p90, p99 and the most, for a row of a table. */
export const SPREAD_COLUMNS = ['p50 ms', 'p90 ms', 'p99 ms', 'most ms'];
export function spreadCells({ p50, p90, p99, most }: Spread): string[] {
  return [p50, p90, p99, most].map((value) => figure(value));
}

/** A goal whose figure is at most, or at least, so much; null: it was not measured, for this reason. */
export function goalOf(
  what: string,
  limit: { most: number } | { least: number },
  unit: string,
  measured: Paired | number | { missing: string },
): Goal {
  const goal = 'most' in limit ? `≤ ${figure(limit.most)} ${unit}` : `≥ ${figure(limit.least)} ${unit}`;
  if (typeof measured === 'object' && 'missing' in measured)
    return { what, goal, measured: measured.missing, reached: null };
  const value = typeof measured === 'number' ? measured : measured.median;
  const reached = 'most' in limit ? value <= limit.most : value >= limit.least;
  const said = typeof measured === 'number' ? `${figure(value)} ${unit}` : spread(measured, ` ${unit}`);
  return { what, goal, measured: said, reached };
}
