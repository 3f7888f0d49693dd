import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, expect, test } from 'vitest';
import { createMetrics } from '../packages/control/src/telemetry/metrics.ts';

/** `deploy/grafana/flotilla.json` asks for nothing that `/metrics` does not have. */
interface Panel {
  title: string;
  description?: string;
  type: string;
  targets?: { expr: string }[];
}
const text = readFileSync(join(import.meta.dirname, '../deploy/grafana/flotilla.json'), 'utf8');
const dashboard = JSON.parse(text) as {
  panels: Panel[];
  templating: { list: { name: string; definition?: string }[] };
};
const graphs = dashboard.panels.filter(({ type }) => type !== 'row');
const asked = [
  ...graphs.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr)),
  ...dashboard.templating.list.flatMap(({ definition }) => definition ?? []),
];
/** What the scraper adds to every sample. */
const OF_THE_SCRAPER = ['instance'];

/** Labels of each metric, by the name that a query uses. */
const offered = new Map<string, Set<string>>();

beforeAll(async () => {
  const metrics = createMetrics();
  metrics.watch({ queueDepths: () => [['m', 1]], nodeStates: () => [['online', 1]] });
  metrics.requestStarted();
  metrics.requestEnded({
    operation: 'chat',
    model: 'm',
    outcome: 'succeeded',
    total_ms: 2,
    first_byte_ms: 1,
    usage: { prompt_tokens: 1, completion_tokens: 1 },
  });
  metrics.queueWaited('m', 1);
  metrics.attemptEnded('withdrawn');
  metrics.authFailed('api');
  metrics.storeFlushed({ rows: 1, duration_ms: 1, failed: false });
  for (const line of (await metrics.render()).split('\n')) {
    const [, name, labels = ''] = /^(\w+)(?:\{(.*)\})? /.exec(line) ?? [];
    if (name === undefined) continue;
    const known = offered.get(name) ?? new Set(OF_THE_SCRAPER);
    for (const [, label] of labels.matchAll(/(\w+)="/g)) known.add(label!);
    offered.set(name, known);
  }
});

test('every metric that a panel or a choice names is one that the control plane has', () => {
  const names = new Set(asked.flatMap((query) => query.match(/flotilla_\w+/g) ?? []));
  expect(names.size).toBeGreaterThan(15);
  expect([...names].filter((name) => !offered.has(name))).toEqual([]);
});

test('every label that a panel filters or adds up by is one of its metric', () => {
  const wrong = asked.flatMap((query) => {
    const selected = [...query.matchAll(/(flotilla_\w+)\{([^}]*)\}/g)];
    const filtered = selected.flatMap(([, metric = '', filter = '']) =>
      [...filter.matchAll(/(\w+)(?:=~|!~|!=|=)/g)].map(([, label = '']) => ({ metric, label })),
    );
    const grouped = [...query.matchAll(/\bby \(([^)]*)\)/g)].flatMap(([, labels = '']) =>
      labels.split(/, */),
    );
    const used = [
      ...filtered,
      ...selected.flatMap(([, metric = '']) => grouped.map((label) => ({ metric, label }))),
    ];
    return used.filter(({ metric, label }) => offered.get(metric)?.has(label) !== true);
  });
  expect(wrong).toEqual([]);
});

test('every panel says what it shows, and no data source of its maker is in it', () => {
  expect(
    graphs.filter(({ description = '' }) => !description.endsWith('.')).map(({ title }) => title),
  ).toEqual([]);
  expect(graphs.length).toBeGreaterThan(15);
  const sources = new Set(
    [...text.matchAll(/"type": "prometheus",\s*"uid": "([^"]*)"/g)].map(([, uid]) => uid),
  );
  expect([...sources]).toEqual(['${datasource}']);
});
