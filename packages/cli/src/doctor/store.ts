import type { StoreOptions } from '@flotilla/control';
import { placeName } from '../backup/place.ts';
import type { Check } from './check.ts';

/** The store that a control plane with this environment would use. */
export async function checkStore(place: StoreOptions): Promise<Check[]> {
  const { inspectStore, openLog } = await import('@flotilla/control');
  const report = await inspectStore(place, openLog('error'));
  const at = placeName(place);
  const store = (name: string, state: Check['state'], found: string, next?: string): Check => ({
    area: 'store',
    name,
    state,
    found,
    ...(next === undefined ? {} : { next }),
  });
  if (report.state === 'absent') return [store('store', 'skip', `there is no store in ${at} yet`)];
  if (report.state === 'in use') {
    return [store('store', 'ok', `the embedded store in ${at} is open in ${report.holder}`)];
  }
  const checks = [store('store', 'ok', `${at} opens; PostgreSQL ${report.server_version} speaks`)];
  const { schema_version: version, newest_schema: newest } = report;
  if (version > newest) {
    checks.push(
      store(
        'schema',
        'fail',
        `version ${version}, of a newer Flotilla; this one knows ${newest}`,
        'Use the newer one.',
      ),
    );
  } else if (version < newest) {
    checks.push(store('schema', 'ok', `version ${version}; the next start migrates it to ${newest}`));
  } else checks.push(store('schema', 'ok', `version ${version}`));
  if ('data_dir' in place) {
    checks.push(
      store('durability', 'ok', 'an acknowledged write survives process death; PostgreSQL: power loss too'),
    );
  } else if (report.durable) {
    checks.push(store('durability', 'ok', 'an acknowledged write survives power loss'));
  } else {
    checks.push(
      store(
        'durability',
        'warn',
        'fsync or synchronous_commit is off: a power loss can take acknowledged work',
        'Set both to on in this PostgreSQL.',
      ),
    );
  }
  return checks;
}
