import { existsSync, readFileSync } from 'node:fs';
import { GOAL_COLUMNS, type KeptReport, circumstances, goalRows } from '../../bench/report.ts';
import { page, table } from './markdown.ts';

/** In the order in which a reader asks: a request, a job, the fleet, faults, the process itself. */
const SCENARIOS = [
  'paths',
  'slow-streams',
  'accept',
  'lifecycles',
  'fleet',
  'depth',
  'failover',
  'footprint',
] as const;

const RESULTS = new URL('../../bench/results/', import.meta.url);

export function speedPage(): string {
  const sections = SCENARIOS.map((name) => {
    const file = new URL(`${name}.json`, RESULTS);
    if (!existsSync(file)) return `## ${name}\nNot measured yet: \`npm run bench -- ${name}\`.`;
    return section(JSON.parse(readFileSync(file, 'utf8')) as KeptReport);
  });
  return page('Speed', '`bench/results/`', INTRODUCTION, ...sections);
}

function section(kept: KeptReport): string {
  const { name, title, plots } = kept;
  return [
    `## ${title}`,
    `${circumstances(kept)} [All of it](../../bench/results/${name}.md).`,
    table(GOAL_COLUMNS, goalRows(kept)),
    ...plots.map((plot) => `![${plot.title}](../../bench/results/${plot.file})`),
  ].join('\n\n');
}

const INTRODUCTION = `What the bench has measured last, beside the least that could do the same work and beside what people use for it
today. Ratios are of pairs of one round: the median, with the lowest and the highest. How to measure it on a machine of your own, what
is fair about it, and what is in the way where a goal is missed: [the guide](../guides/speed.md).`;
