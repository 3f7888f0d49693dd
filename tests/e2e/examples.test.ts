import { execFile } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { flotilla, type Program } from '../support/program.ts';
import { until } from '../support/until.ts';
import { openWorld, type World } from '../support/world.ts';

/** The examples as a reader runs them: each a process of its own, told where the control plane is, and nothing else. */
const FOLDER = fileURLToPath(new URL('../../examples/', import.meta.url));
const run = promisify(execFile);

let world: World;
let sim: Program;
beforeAll(async () => {
  world = await openWorld({ heartbeat_ms: 2000 });
  sim = flotilla(['sim', 'backend', '--port', '0', '--json', '--model', 'sim-chat']);
  const [, url] = await until('the simulated backend listens', () => /"url": ?"(\S+?)"/.exec(sim.output()));
  await world.node({ name: 'box', backends: [{ url: url! }] });
}, 120_000);
afterAll(async () => {
  await world?.close();
  await sim?.stop();
}, 60_000);

/** What each prints. */
const PRINTS: Record<string, RegExp> = {
  'openai-stream.ts': /^\[simulated\] .*fleet of machines[^]*\n\(\d+ tokens\)\n$/,
  'vercel-ai.ts': /^\[simulated\] .*fleet of machines[^]*\n\(\d+ tokens\)\n$/,
  'jobs.ts':
    /^submitted: queued\nended: succeeded\nresult: \[simulated\][^\n]*\nended: succeeded\nrefused: model_not_found\n$/,
  'administer.ts':
    /^box: online, healthy\nanswer: \[simulated\][^\n]*\nused \d+ of 1000 tokens; [^\n]*T00:00:00\.000Z\nusage rows: sim-chat succeeded\nafter its end: revoked\n$/,
};

test('every example is run here', () => {
  const found = readdirSync(FOLDER).filter((file) => file.endsWith('.ts'));
  expect(found.sort()).toEqual(Object.keys(PRINTS).sort());
});

test.each(Object.entries(PRINTS))(
  '%s runs, and prints what it says',
  async (file, printed) => {
    const env = { ...process.env, FLOTILLA_URL: world.plane.url, FLOTILLA_API_KEY: world.plane.admin_key };
    const { stdout } = await run(process.execPath, [`${FOLDER}${file}`], { env });
    expect(stdout).toMatch(printed);
  },
  60_000,
);
