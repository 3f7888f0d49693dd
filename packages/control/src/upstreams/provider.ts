import {
  type Clock,
  type Deadlines,
  type Log,
  type ModelSpots,
  type NodeRecord,
  type ProviderRecord,
  type RelayBackend,
  type RelayDone,
  type Timer,
  newLiveness,
  newModelSpots,
  relayBackend,
  resizePools,
} from '@flotilla/core';
import { type Health, OPERATIONS } from '@flotilla/protocol';
import type { Dispatcher } from 'undici';
import type { Attempt } from '../dispatch/attempt.ts';
import type { Dispatcher as Scheduler } from '../dispatch/dispatcher.ts';
import { type FleetNode, type ModelSpot, newFleetNode } from '../fleet/node.ts';
import { type Probed, probeProvider } from './provider-probe.ts';
import { openProviderLink } from './provider-link.ts';
import { type ProxySettings, wayOut } from './way-out.ts';

/**
 * One upstream API, as the scheduler sees it (a node that is always linked, with as many slots as it may be asked at
 * once) and as it is asked.
 *
 *     degraded (not asked yet) ──▶ healthy ◀──▶ degraded ──▶ down      by probes, and by what becomes of requests
 *     resting: it answered 429 with Retry-After, and gets nothing until then
 *
 * Moved by: its probes (every 30 s; after a failure 5 s), the ends of its requests, the store's record of it. A new
 * record changes how it is asked from the next request on; requests under way go on as they began.
 */
export interface Provider {
  readonly node: FleetNode;
  readonly record: ProviderRecord;
  readonly health: Health;
  /** Why it is not healthy, or gets nothing now. */
  readonly reason: string | null;
  readonly alarms: readonly string[];
  /** Of its last good list. */
  readonly models: readonly string[] | null;
  readonly probed_at: number | null;
  /** Where its model is served for placement; made for the models that routes name. */
  spots(model: string): ModelSpots<ModelSpot> | undefined;
  /** Takes over the store's record, and the models that routes send to it. */
  take(record: ProviderRecord, models: ReadonlySet<string>): void;
  probe(): Promise<void>;
  /** No new work, no more probes; its connections go when their requests have ended. */
  close(): Promise<void>;
}

export interface ProviderDeps {
  clock: Clock;
  /** For what is repeated: its timers do not keep the process alive. */
  background: Clock;
  log: Log;
  deadlines: Deadlines;
  dispatcher: () => Scheduler;
  /** This control plane's name in `Via`. */
  pseudonym: string;
  /** Providers get the `traceparent` of what they are asked. */
  traced: boolean;
  connect_timeout_ms: number;
  proxies: ProxySettings;
  user_agent: string;
  /** @throws Error when its key does not open */
  keyOf(record: ProviderRecord): string | null;
  /** Whether somebody else could serve this attempt's job. */
  elsewhere(attempt: Attempt): boolean;
}

const POOL = 'requests';
const PROBE_EVERY_MS = 30_000;
const PROBE_AGAIN_MS = 5000;
/** So many requests in a row that failed: the next ones go elsewhere until it was asked again. */
const FAILURES_DOWN = 3;
/** A longer rest is asked about again: what a rate limit says is often a guess. */
const REST_MOST_MS = 60_000;

/** Why it gets no request by its last probe, or the last ones. */
interface Finding {
  health: Health;
  reason: string | null;
  alarm: string | null;
}
const UNKNOWN: Finding = { health: 'degraded', reason: 'it was not asked yet', alarm: null };
const WELL: Finding = { health: 'healthy', reason: null, alarm: null };

export function createProvider(first: ProviderRecord, deps: ProviderDeps): Provider {
  const { clock, background, log } = deps;
  let record = first;
  let agent = agentFor(first);
  let backend: RelayBackend | null = null;
  let finding: Finding = UNKNOWN;
  let failures = 0;
  let resting_until_ms = 0;
  let rest_timer: Timer | null = null;
  let probe_timer: Timer | null = null;
  let probing: Promise<void> | null = null;
  let models: readonly string[] | null = null;
  let probed_at: number | null = null;
  let closed = false;
  const stop = new AbortController();
  const by_model = new Map<string, { spot: ModelSpot; spots: ModelSpots<ModelSpot> }>();
  const node = newFleetNode(nodeRecord(first), clock.now_ms(), turned, true);
  // There is no link to lose: whether it can be asked is its health.
  node.liveness = newLiveness('online', 'it is asked from here');
  node.state = node.liveness.state;
  node.link = openProviderLink(node, {
    clock,
    deadlines: deps.deadlines,
    dispatcher: deps.dispatcher,
    pseudonym: deps.pseudonym,
    traced: deps.traced,
    upstream: () => backend && { agent, backend, first_byte_timeout_ms: record.first_byte_timeout_ms },
    ended,
  });

  const provider: Provider = {
    node,
    get record() {
      return record;
    },
    get health() {
      return finding.health;
    },
    get reason() {
      if (!record.enabled) return 'it is disabled';
      if (node.resting) return 'it asked to be left alone for a while (429)';
      return finding.reason;
    },
    get alarms() {
      return finding.alarm === null ? [] : [finding.alarm];
    },
    get models() {
      return models;
    },
    get probed_at() {
      return probed_at;
    },
    spots: (model) => by_model.get(model)?.spots,
    take,
    probe,
    close,
  };
  return provider;

  function take(next: ProviderRecord, wanted: ReadonlySet<string>): void {
    const before = record;
    const fresh = backend === null;
    record = next;
    const moved = fresh || asksOtherwise(before, next);
    if (moved) {
      if (before.connect_timeout_ms !== next.connect_timeout_ms || before.base_url !== next.base_url) {
        const old = agent;
        agent = agentFor(next);
        void old.close();
      }
      readBackend();
    }
    node.record = nodeRecord(next);
    node.synced = node.record;
    node.cordoned = !next.enabled;
    node.labels = next.labels;
    resizePools(node.ledger, [{ id: POOL, capacity: next.concurrency, capacity_from: 'config' }]);
    placeModels(wanted);
    if (moved || before.enabled !== next.enabled || before.probe !== next.probe) armProbe(0);
    changed();
  }

  function readBackend(): void {
    failures = 0;
    wake();
    try {
      const key = deps.keyOf(record);
      backend = relayBackend(
        {
          base_url: record.base_url,
          headers: key === null ? {} : { [record.key_header]: authorization(record.key_header, key) },
          idle_timeout_ms: record.idle_timeout_ms ?? undefined,
        },
        deps.user_agent,
      );
      find(record.probe === 'models' ? UNKNOWN : WELL);
    } catch (error) {
      backend = null;
      const reason = 'its key cannot be unsealed: give it again';
      log.error({ provider: record.id, error }, 'The key of a provider cannot be unsealed.');
      find({ health: 'down', reason, alarm: reason });
    }
  }

  function placeModels(wanted: ReadonlySet<string>): void {
    for (const [model, { spots }] of by_model) {
      if (wanted.has(model)) continue;
      spots.remove(node.id);
      by_model.delete(model);
    }
    for (const model of wanted) {
      if (by_model.has(model)) continue;
      const spot: ModelSpot = {
        node,
        model,
        backend: record.name,
        operations: OPERATIONS,
        loaded: true,
        backend_health: finding.health,
        model_health: finding.health,
        slots: node.ledger.pools.get(POOL)!,
      };
      const spots = newModelSpots<ModelSpot>();
      spots.add(spot);
      by_model.set(model, { spot, spots });
    }
    node.spots = [...by_model.values()].map(({ spot }) => spot);
  }

  function turned(): void {
    for (const { spot, spots } of by_model.values()) spots.moved(spot);
  }

  /** Placement sees it otherwise from now on, and who waits may be served. */
  function changed(): void {
    for (const { spot } of by_model.values()) {
      spot.backend_health = finding.health;
      spot.model_health = finding.health;
    }
    turned();
    if (closed) return;
    deps.dispatcher().pump(node);
    deps.dispatcher().recheck();
  }

  function find(found: Finding): void {
    const before = finding;
    finding = found;
    if (before.health === found.health && before.reason === found.reason) return;
    const what = { provider: record.id, name: record.name, from: before.health, to: found.health };
    if (found.alarm !== null) log.error({ ...what, reason: found.reason }, `provider: ${found.alarm}`);
    else log.info({ ...what, reason: found.reason }, `provider ${found.health}`);
    changed();
  }

  /** What became of a request says how it is. @returns what is told of a failure */
  function ended({ failure }: RelayDone, attempt: Attempt, asked: RelayBackend): RelayDone['failure'] {
    // Of how it was asked before its record changed, nothing follows for now: with its key, say.
    if (asked !== backend) return failure;
    if (failure === undefined) {
      failures = 0;
      find(WELL);
      return undefined;
    }
    const { status, retry_after_ms } = failure;
    if (failure.code === 'loop_detected') {
      return {
        ...failure,
        message: `The provider ${record.name} leads back to a control plane that this request has come through.`,
        // Of other requests nothing follows: two fleets may be each other's last resort. Its probe finds one that always loops.
        retryable: deps.elsewhere(attempt),
      };
    }
    if (status === 401 || status === 403) {
      const reason = `it refuses the key it is given (${status}): give it another one`;
      find({ health: 'down', reason, alarm: reason });
      armProbe(PROBE_EVERY_MS);
      return {
        ...failure,
        message: 'The upstream provider refused the credential of this control plane.',
        // Ours to mend: asked again at once it would say the same.
        retryable: deps.elsewhere(attempt),
      };
    }
    if (status === 429 && retry_after_ms !== undefined && retry_after_ms > 0) rest(retry_after_ms);
    else if (failure.unhealthy && ++failures >= FAILURES_DOWN) {
      find({
        health: 'down',
        reason: `${failures} requests in a row failed: ${failure.message}`,
        alarm: null,
      });
      armProbe(PROBE_AGAIN_MS);
    }
    return failure;
  }

  function rest(ms: number): void {
    resting_until_ms = Math.max(resting_until_ms, clock.now_ms() + Math.min(ms, REST_MOST_MS));
    node.resting = true;
    rest_timer?.cancel();
    rest_timer = clock.after(resting_until_ms - clock.now_ms(), () => {
      wake();
      changed();
    });
    turned();
  }

  function wake(): void {
    rest_timer?.cancel();
    rest_timer = null;
    resting_until_ms = 0;
    node.resting = false;
  }

  function armProbe(after_ms: number): void {
    probe_timer?.cancel();
    probe_timer = null;
    if (closed || !record.enabled || backend === null) return;
    probe_timer = background.after(after_ms, () => void probe());
  }

  /** One at a time; who asks meanwhile gets the answer to the one under way. */
  function probe(): Promise<void> {
    probing ??= askNow().finally(() => {
      probing = null;
      armProbe(finding.health === 'healthy' ? PROBE_EVERY_MS : PROBE_AGAIN_MS);
    });
    return probing;
  }

  async function askNow(): Promise<void> {
    const asked = backend;
    if (asked === null) return;
    if (record.probe === 'none') {
      // Nothing can be asked but requests: one may try again.
      failures = 0;
      if (finding.health === 'down') find({ ...finding, health: 'degraded', alarm: null });
      return;
    }
    const found = await probeProvider(
      agent,
      asked,
      deps.pseudonym,
      record.connect_timeout_ms ?? deps.connect_timeout_ms,
      stop.signal,
    );
    // Asked under another record meanwhile: what was found is of the past.
    if (closed || backend !== asked) return;
    probed_at = clock.wall_ms();
    judge(found);
  }

  function judge(found: Probed): void {
    switch (found.kind) {
      case 'well':
        failures = 0;
        models = found.models ?? models;
        // Some list their models to anybody: only a request that is served proves the key.
        return find(finding.alarm === null ? WELL : { ...finding, health: 'degraded' });
      case 'refused': {
        const reason = `it refuses the key it is given (${found.status}): give it another one`;
        return find({ health: 'down', reason, alarm: reason });
      }
      case 'loops': {
        // Not down: who asks for it is told why at once, not that nobody can serve it.
        const reason = 'its address leads back to this control plane: change its base_url';
        return find({ health: 'degraded', reason, alarm: reason });
      }
      case 'failed': {
        // One failure may be a blip; a second in a row is not.
        const again = finding.health !== 'healthy' && finding !== UNKNOWN;
        return find({
          health: again || found.unreachable ? 'down' : 'degraded',
          reason: found.reason,
          alarm: null,
        });
      }
    }
  }

  async function close(): Promise<void> {
    closed = true;
    node.cordoned = true;
    rest_timer?.cancel();
    probe_timer?.cancel();
    stop.abort();
    turned();
    await probing?.catch(() => undefined);
    // Resolves when requests under way have ended; those who stop the process do not wait for it.
    void agent.close().catch(() => undefined);
  }

  function agentFor({ base_url, connect_timeout_ms }: ProviderRecord): Dispatcher {
    return wayOut(base_url, connect_timeout_ms ?? deps.connect_timeout_ms, deps.proxies);
  }
}

function asksOtherwise(a: ProviderRecord, b: ProviderRecord): boolean {
  return (
    a.base_url !== b.base_url ||
    a.key_sealed !== b.key_sealed ||
    a.key_header !== b.key_header ||
    a.idle_timeout_ms !== b.idle_timeout_ms ||
    a.connect_timeout_ms !== b.connect_timeout_ms
  );
}

function authorization(header: string, key: string): string {
  return header === 'authorization' ? `Bearer ${key}` : key;
}

/** It has no row of a node: what the scheduler reads of one, made up. */
function nodeRecord({ id, name, labels, enabled, created_at }: ProviderRecord): NodeRecord {
  return {
    id,
    name,
    labels,
    allowed_models: [],
    state: 'online',
    cordoned: !enabled,
    drain_deadline_at: null,
    epoch: 0,
    descriptor: null,
    descriptor_hash: null,
    close_reason: null,
    created_at,
    last_seen_at: null,
    revoked_at: null,
    credentials: [],
  };
}
