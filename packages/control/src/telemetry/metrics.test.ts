import { expect, test } from 'vitest';
import { createMetrics } from './metrics.ts';

const ended = {
  operation: 'chat',
  model: 'm',
  outcome: 'succeeded',
  total_ms: 40,
  first_byte_ms: 7,
  usage: { prompt_tokens: 3, completion_tokens: 5 },
};

async function samples(metrics: ReturnType<typeof createMetrics>, name: string): Promise<string[]> {
  const text = await metrics.render();
  return text.split('\n').filter((line) => line.startsWith(name));
}

test('a request is counted by operation, model and outcome, and timed', async () => {
  const metrics = createMetrics();
  metrics.requestStarted();
  metrics.requestStarted();
  metrics.requestEnded(ended);
  metrics.requestRefused('chat', 'queue_full');
  expect(await samples(metrics, 'flotilla_requests_total')).toEqual([
    'flotilla_requests_total{operation="chat",model="m",outcome="succeeded"} 1',
    'flotilla_requests_total{operation="chat",model="other",outcome="queue_full"} 1',
  ]);
  expect(await samples(metrics, 'flotilla_first_byte_seconds_bucket{le="0.01"')).toEqual([
    'flotilla_first_byte_seconds_bucket{le="0.01",operation="chat",model="m"} 1',
  ]);
  expect(await samples(metrics, 'flotilla_tokens_total')).toEqual([
    'flotilla_tokens_total{model="m",kind="input"} 3',
    'flotilla_tokens_total{model="m",kind="output"} 5',
  ]);
  expect(await samples(metrics, 'flotilla_requests_in_flight')).toEqual(['flotilla_requests_in_flight 1']);
});

test('only models that a node offers get a label, and only 200 of them', async () => {
  const metrics = createMetrics();
  metrics.watch({ offersModel: (model) => model !== 'made-up' });
  for (let n = 0; n < 300; n++) metrics.requestEnded({ ...ended, model: `m${n}` });
  metrics.requestEnded({ ...ended, model: 'made-up' });
  const lines = await samples(metrics, 'flotilla_requests_total');
  expect(lines).toHaveLength(201);
  expect(lines).toContain('flotilla_requests_total{operation="chat",model="other",outcome="succeeded"} 101');
});

test('present values are read when somebody asks, and do not linger', async () => {
  const metrics = createMetrics();
  const depths: [string, number][] = [['m', 3]];
  metrics.watch({
    queueDepths: () => depths,
    links: () => 4,
    nodeStates: () => [
      ['online', 1],
      ['online', 1],
    ],
  });
  expect(await samples(metrics, 'flotilla_queue_depth')).toEqual(['flotilla_queue_depth{model="m"} 3']);
  expect(await samples(metrics, 'flotilla_nodes')).toEqual(['flotilla_nodes{state="online"} 2']);
  expect(await samples(metrics, 'flotilla_links')).toEqual(['flotilla_links 4']);
  depths.length = 0;
  expect(await samples(metrics, 'flotilla_queue_depth')).toEqual([]);
});

test('flushes, attempts, beats and refusals are counted', async () => {
  const metrics = createMetrics();
  metrics.storeFlushed({ rows: 7, duration_ms: 2, failed: false });
  metrics.storeFlushed({ rows: 7, duration_ms: 2, failed: true });
  metrics.attemptEnded('withdrawn');
  metrics.beatReceived();
  metrics.authFailed('api');
  metrics.queueWaited('m', 20);
  const text = await metrics.render();
  for (const line of [
    'flotilla_store_rows_total 7',
    'flotilla_store_flush_failures_total 1',
    'flotilla_store_flush_seconds_count 2',
    'flotilla_attempts_total{outcome="withdrawn"} 1',
    'flotilla_beats_total 1',
    'flotilla_auth_failures_total{surface="api"} 1',
    'flotilla_queue_wait_seconds_count{model="m"} 1',
  ]) {
    expect(text).toContain(`${line}\n`);
  }
});
