import type { Clock, Log, Store } from '@flotilla/core';
import { FlotillaError } from '@flotilla/protocol';
import type { Handlers } from './routing.ts';

export interface HealthDeps {
  store: Pick<Store, 'ping' | 'engine'>;
  clock: Clock;
  log: Log;
  stopping: () => boolean;
  recording: () => boolean;
  /** This one: behind a balancer nothing else says who answers. */
  replica: string;
  /** Whether the other replicas can be told anything; null: there are none. */
  bus: { readonly connected: boolean } | null;
}

/** A store that takes longer than this to answer nothing is of no use to a request either. */
const PING_WITHIN_MS = 2000;
const RETRY_MS = 1000;

/** `healthz`: the process runs its event loop. `readyz`: it can serve; migrations ran before it listened at all. */
export function healthRoutes({
  store,
  clock,
  log,
  stopping,
  recording,
  replica,
  bus,
}: HealthDeps): Pick<Handlers, 'healthz' | 'readyz'> {
  let asking: Promise<boolean> | null = null;
  let answered = true;
  return {
    healthz: () => ({ status: 'ok' }),
    async readyz() {
      if (stopping()) throw notReady('This control plane is stopping.');
      // Anybody may ask, as often as they like: the store hears one question at a time.
      asking ??= storeAnswers().finally(() => (asking = null));
      if (!(await asking)) throw notReady('The store does not answer.');
      // It may answer again before the records that waited are written; until then requests are refused.
      if (!recording()) throw notReady('The store does not take records yet.');
      // It serves its own nodes and its own clients: to take it out of the balancer would serve nobody better.
      if (bus?.connected === false) return { status: 'degraded', store: store.engine, replica, bus: 'away' };
      return { status: 'ready', store: store.engine, replica, ...(bus !== null && { bus: 'connected' }) };
    },
  };

  async function storeAnswers(): Promise<boolean> {
    const { promise: timeout, reject } = Promise.withResolvers<never>();
    const timer = clock.after(PING_WITHIN_MS, () =>
      reject(new Error(`No answer within ${PING_WITHIN_MS} ms.`)),
    );
    try {
      await Promise.race([store.ping(), timeout]);
      answered = true;
    } catch (error) {
      if (answered) log.warn({ error }, 'Not ready: the store does not answer.');
      answered = false;
    } finally {
      timer.cancel();
    }
    return answered;
  }
}

function notReady(message: string): FlotillaError {
  return new FlotillaError('unavailable', message, { retry_after_ms: RETRY_MS });
}
