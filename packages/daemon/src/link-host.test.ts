import { BroadcastChannel } from 'node:worker_threads';
import { expect, onTestFinished, test } from 'vitest';
import { LinkHost } from './link-host.ts';
import type { FromStandIn, FromTest } from './testing/stand-in-link.ts';
import { ManualClock } from '@flotilla/core/testing';
import { recordedLog } from './testing/recorded-log.ts';
import type { LinkThreadData } from './threads.ts';
import { until } from './testing/until.ts';

test('a crashed link thread is started again a second later, with a log line, and with what is true by then', async () => {
  const control_url = `test:${process.pid}:link-host`;
  const channel = new BroadcastChannel(control_url);
  const started: string[] = [];
  channel.onmessage = (event: { data: FromStandIn }) => {
    if ('started' in event.data) started.push(event.data.started.descriptor_hash);
  };
  const clock = new ManualClock();
  const log = recordedLog();
  const crashes: string[] = [];
  let hash = 'one';
  const host = new LinkHost({
    script: new URL('./testing/stand-in-link.ts', import.meta.url),
    data: () => ({ control_url, descriptor_hash: hash }) as LinkThreadData,
    clock,
    log,
    on_message: () => {},
    on_crash: (reason) => void crashes.push(reason),
  });
  onTestFinished(async () => {
    await host.end();
    channel.close();
  });
  host.start();
  await until(() => expect(started).toEqual(['one']));

  hash = 'two';
  channel.postMessage({ crash: 'out of ideas' } satisfies FromTest);
  await until(() => expect(crashes).toHaveLength(1));
  expect(crashes[0]).toContain('out of ideas');
  expect(log.lines).toMatchObject([{ level: 'error', fields: { restart_in_ms: 1_000 } }]);
  expect(host.up).toBe(false);

  clock.advance(999);
  expect(host.up).toBe(false);
  clock.advance(1);
  await until(() => expect(started).toEqual(['one', 'two']));

  // A thread that ran for long is not waited for.
  clock.advance(60_000);
  channel.postMessage({ crash: 'again' } satisfies FromTest);
  await until(() => expect(crashes).toHaveLength(2));
  clock.advance(0);
  await until(() => expect(started).toHaveLength(3));

  await host.end();
  expect(clock.pending).toBe(0);
});
