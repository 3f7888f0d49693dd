import { systemClock, systemRandom } from '../../packages/control/src/clock.ts';
import { openSealer } from '../../packages/control/src/secrets/sealer.ts';
import { type StoreOptions, openStore } from '../../packages/control/src/store/open.ts';
import { quiet } from '../support/store.ts';

/**
 * A start that gives another secret key its place, and is killed in the middle: `node reseal.fixture.ts STORE KEY PREVIOUS
 * DRAW MS`. STORE is JSON; the process ends MS after the DRAWth nonce was drawn, 0: in that very moment.
 */
const [, , place, key, previous, draw, ms] = process.argv;
let left = Number(draw);
const kill = () => process.kill(process.pid, 'SIGKILL');

const store = await openStore(JSON.parse(place!) as StoreOptions, quiet);
const bytes = (length: number) => {
  if (--left === 0) {
    if (ms === '0') kill();
    else setTimeout(kill, Number(ms));
  }
  return systemRandom.bytes(length);
};
await openSealer(key, previous, {
  store,
  clock: systemClock,
  random: { ...systemRandom, bytes },
  log: quiet,
});
// Where it got to its end first, it dies with all of it committed.
setInterval(() => undefined, 60_000);
