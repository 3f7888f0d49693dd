import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { runChaos } from './chaos.ts';

/**
 * The short form of `npm run chaos`. FLOTILLA_TEST_SEED repeats the faults of a run: which, whom and for how long. What
 * is broken is in the history, whose place the failure names.
 */
const SEED = Number(process.env['FLOTILLA_TEST_SEED'] ?? Math.floor(Math.random() * 2 ** 31));
const FOR_MS = 60_000;
/** A fleet is started, and what is open when all is healed has its time. */
const WITHIN_MS = 300_000;

test(
  'no promise is broken, whatever else is',
  async () => {
    const path = join(tmpdir(), `flotilla-chaos-${SEED}-${process.pid}.jsonl`);
    const print = (text: string) => void process.stdout.write(`seed ${SEED}: ${text}\n`);
    const { violations, counts, faults } = await runChaos({
      seed: SEED,
      jobs: 2000,
      for_ms: FOR_MS,
      until_done: false,
      replicas: 3,
      nodes: 4,
      slots: 16,
      heartbeat_ms: 2500,
      gap_ms: 1500,
      askers: 3,
      batch: 50,
      path,
      print,
    });
    print(`${JSON.stringify(counts)}, ${violations.length} violations`);
    expect({ history: path, violations: violations.slice(0, 10) }).toEqual({ history: path, violations: [] });
    // It was a test of something.
    expect([...faults.values()].reduce((sum, count) => sum + count, 0)).toBeGreaterThan(10);
    expect(counts.whole).toBeGreaterThan(50);
    await rm(path);
  },
  WITHIN_MS,
);
