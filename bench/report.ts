import { mkdir, writeFile } from 'node:fs/promises';
import { BUSY, hardware } from './hardware.ts';
import type { Spread } from './histogram.ts';
import { figure } from './figure.ts';
import { type Bars, bars } from './plot.ts';
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

interface Plot extends Bars {
  /** Of the file, after the scenario's name. */
  name: string;
}

const RESULTS = new URL('results/', import.meta.url);

/** `results/<name>.json`. */
export interface KeptReport {
  name: string;
  title: string;
  /** Of the day it was measured on: `2026-11-30`. */
  date: string;
  hardware: string;
  /** The most that others had of the processors, before it or after it: 0 to 1. */
  busy_share: number;
  /** See `memoryLatency`: before it and after it. */
  memory_ns?: number[];
  /** With the options that it ran with. */
  command: string;
  goals: Goal[];
  /** `file`: beside this one. */
  plots: { file: string; title: string }[];
  data: unknown;
}

/** Where and how it ran. */
export interface Circumstances {
  busy_share: number;
  memory_ns: [number, number];
  command: string;
}

export async function keep(report: Report, ran: Circumstances): Promise<string> {
  await mkdir(RESULTS, { recursive: true });
  const { name } = report;
  for (const plot of report.plots) await writeFile(new URL(fileOf(report, plot), RESULTS), bars(plot));
  await writeFile(new URL(`${name}.json`, RESULTS), `${JSON.stringify(keptOf(report, ran), null, 1)}\n`);
  const page = pageOf(report, ran);
  await writeFile(new URL(`${name}.md`, RESULTS), page);
  return page;
}

function keptOf(report: Report, ran: Circumstances): KeptReport {
  const { name, title, goals, plots, data } = report;
  return {
    name,
    title,
    date: new Date().toISOString().slice(0, 10),
    hardware: hardware(),
    busy_share: Number(ran.busy_share.toFixed(2)),
    memory_ns: ran.memory_ns.map(Math.round),
    command: ran.command,
    goals,
    plots: plots.map((plot) => ({ file: fileOf(report, plot), title: plot.title })),
    data,
  };
}

function fileOf({ name }: Report, plot: Plot): string {
  return `${name}-${plot.name}.svg`;
}

export function pageOf(report: Report, ran: Circumstances): string {
  const kept = keptOf(report, ran);
  const parts = [`# ${report.title}`, report.about, circumstances(kept)];
  if (kept.goals.length > 0) parts.push(`## Goals\n\n${tableOf(GOAL_COLUMNS, goalRows(kept))}`);
  parts.push(...report.tables.map(({ title, columns, rows }) => `## ${title}\n\n${tableOf(columns, rows)}`));
  parts.push(...kept.plots.map(({ file, title }) => `![${title}](${file})`));
  return `${parts.join('\n\n')}\n`;
}

/** A sentence: what it was measured on, when, how, and whether others were at work meanwhile. */
export function circumstances({
  date,
  hardware: machine,
  busy_share,
  memory_ns,
  command,
}: KeptReport): string {
  const busy =
    busy_share > BUSY
      ? ` **Others took ${Math.round(busy_share * 100)} % of the processors: these figures are of a busy machine.**`
      : '';
  const memory =
    memory_ns === undefined
      ? ''
      : ` A read that leaves its core took ${memory_ns[0]} ns before it and ${memory_ns[1]} ns after it.`;
  return `Measured on ${date} on ${machine}, with \`${command}\`.${memory}${busy}`;
}

export const GOAL_COLUMNS = ['', 'goal', 'measured', 'reached'];
export function goalRows({ goals }: Pick<KeptReport, 'goals'>): string[][] {
  return goals.map(({ what, goal, measured, reached }) => [
    what,
    goal,
    measured,
    reached === null ? 'not measured' : reached ? 'yes' : '**no**',
  ]);
}

function tableOf(columns: string[], rows: string[][]): string {
  const line = (cells: string[]) => `| ${cells.join(' | ')} |`;
  return [line(columns), line(columns.map(() => '---')), ...rows.map(line)].join('\n');
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
