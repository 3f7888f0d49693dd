import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { stat } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { systemClock } from './clock.ts';

test('without a delay it is the end of this turn, before the shortest timer, and not at all once cancelled', async () => {
  const ran: string[] = [];
  // Into a turn in which something has arrived, as work does.
  await stat('.');
  const timer = new Promise<void>((over) => {
    setTimeout(() => {
      ran.push('timer');
      over();
    }, 1);
  });
  for (const delay_ms of [0, -5]) systemClock.after(delay_ms, () => ran.push(`after ${delay_ms}`));
  systemClock.after(0, () => ran.push('cancelled')).cancel();
  // The timer is due as well when this turn ends.
  const due_ms = performance.now() + 2;
  while (performance.now() < due_ms);
  await timer;
  expect(ran).toEqual(['after 0', 'after -5', 'timer']);
});

test('a turn ends for what works in the background too, where nothing else wakes the loop', async () => {
  // In a process of its own, which has nothing to do but for a timer that is far away.
  const program = `
    import { backgroundClock } from ${JSON.stringify(new URL('clock.ts', import.meta.url).href)};
    const far = setTimeout(() => undefined, 3000);
    setTimeout(() => {
      const began_ms = performance.now();
      backgroundClock.after(0, () => {
        clearTimeout(far);
        process.exitCode = performance.now() - began_ms < 1000 ? 0 : 1;
      });
    }, 1);`;
  const child = spawn(process.execPath, ['--input-type=module', '--eval', program], { stdio: 'inherit' });
  expect(await once(child, 'exit')).toEqual([0, null]);
});
