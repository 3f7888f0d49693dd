import { storeTemplate } from './store.ts';

/** Once before all tests of a run, so that no test's time goes into it. */
export async function setup(): Promise<void> {
  await storeTemplate();
}
