import { expect, test } from 'vitest';
import { World } from './world.ts';

/** Seeds from the first on; `npm run simulate` runs as many as one likes. */
const SEEDS = 150;
/** They compute and never wait: on a busy machine for as long as that takes. */
const timeout = 300_000;

test('every promise holds in every world, whatever goes wrong in it', { timeout }, async () => {
  let ended = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    const { violation, jobs } = await new World({ seed }).run();
    expect(violation, `npm run simulate -- --seed ${seed}`).toBeNull();
    ended += jobs.ended;
  }
  expect(ended).toBeGreaterThan(4 * SEEDS);
});

test('a seed makes the same history each time, to the letter', { timeout }, async () => {
  for (const seed of [3, 11, 20]) {
    const [first, second] = [
      await new World({ seed, history: true }).run(),
      await new World({ seed, history: true }).run(),
    ];
    expect(first.history.length).toBeGreaterThan(100);
    expect(second.history).toEqual(first.history);
  }
});

test('what is written down changes nothing of what happens', async () => {
  const seed = 5;
  const { history: _, ...quiet } = await new World({ seed }).run();
  const { history: __, ...told } = await new World({ seed, history: true }).run();
  expect(told).toEqual(quiet);
});
