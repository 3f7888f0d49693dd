import type { JournalHealth } from '@flotilla/protocol';
import type { BackendState } from '../backends/backend-set.ts';
import { configuredSlots, offeredSlots } from '../descriptor.ts';
import type { AttemptLoad } from '../threads.ts';

/** What is true of the daemon now: kept by `daemon.ts`, read by the status server, `status` and the metrics. */
export interface LinkStatus {
  state: 'connecting' | 'connected' | 'disconnected' | 'stopped';
  /** The one that it is linked to, or was last; before the first link all that it knows. */
  url: string;
  epoch: number | null;
  heartbeat_ms: number | null;
  /** Wall-clock milliseconds. */
  connected_at: number | null;
  last_ack_at: number | null;
  rtt_ms: number | null;
  reason: string | null;
  retry_at: number | null;
  restarts: number;
  warnings: string[];
}

export interface DaemonStatus {
  pid: number;
  boot_id: string;
  version: string;
  node_id: string;
  name: string;
  state_dir: string;
  status: 'starting' | 'running' | 'stopping' | 'stopped';
  started_at: number;
  link: LinkStatus;
  pools: { id: string; in_flight: number; capacity: number }[];
  attempts: AttemptLoad[];
  /** The control plane's wish. */
  cordoned: boolean;
  operator_drain_ms: number | null;
  /** This daemon's own stopping. */
  drain: { reason: string; deadline_at: number } | null;
  ignored: { url: string; reason: string }[];
  /** While it is `down` this node takes on no detached work; what clients wait for goes on. */
  journal: JournalHealth;
}

export function initialLink(url: string): LinkStatus {
  return {
    state: 'connecting',
    url,
    epoch: null,
    heartbeat_ms: null,
    connected_at: null,
    last_ack_at: null,
    rtt_ms: null,
    reason: null,
    retry_at: null,
    restarts: 0,
    warnings: [],
  };
}

/** `GET /status`, and the answer to the verb `status`. No credential is in it. */
export function statusView(
  status: DaemonStatus,
  backends: BackendState[],
  now_wall_ms: number,
): Record<string, unknown> {
  const { link, started_at, drain, attempts, pools, ignored, ...rest } = status;
  const ready = readiness(status, backends);
  const slots = configuredSlots(backends);
  return {
    ...rest,
    uptime_ms: now_wall_ms - started_at,
    ready: ready.ready,
    not_ready_because: ready.reasons,
    link: {
      ...link,
      connected_at: time(link.connected_at),
      last_ack_at: time(link.last_ack_at),
      last_ack_ms_ago: link.last_ack_at === null ? null : Math.max(0, now_wall_ms - link.last_ack_at),
      retry_at: time(link.retry_at),
    },
    drain: drain === null ? null : { reason: drain.reason, deadline_at: time(drain.deadline_at) },
    backends: backends.map((backend) => backendView(backend)),
    pools: backends.map(({ target, capacity, capacity_from }) => ({
      id: target.pool,
      in_flight: pools.find(({ id }) => id === target.pool)?.in_flight ?? 0,
      capacity: offeredSlots(capacity, slots),
      capacity_from,
    })),
    attempts,
    ignored_servers: ignored,
  };
}

function backendView({
  id,
  kind,
  version,
  url,
  found,
  health,
  models,
}: BackendState): Record<string, unknown> {
  return {
    id,
    kind,
    version: version ?? null,
    url,
    found,
    health: health.health,
    reason: health.reason ?? null,
    models: models.map((model) => {
      const own = health.models.find((entry) => entry.id === model.id);
      return {
        ...model,
        loaded: model.loaded ?? null,
        health: own?.health ?? health.health,
        reason: own?.reason ?? health.reason ?? null,
      };
    }),
  };
}

/** Whether this node can be given work now. */
export function readiness(
  status: DaemonStatus,
  backends: BackendState[],
): { ready: boolean; reasons: string[] } {
  const reasons: string[] = [];
  if (status.status !== 'running') reasons.push(`The daemon is ${status.status}.`);
  if (status.link.state !== 'connected') {
    reasons.push(
      `The link is ${status.link.state}${status.link.reason === null ? '' : `: ${status.link.reason}`}.`,
    );
  }
  if (status.cordoned) reasons.push('An operator has cordoned this node.');
  if (backends.length === 0) reasons.push('There is no backend.');
  else if (backends.every(({ health }) => health.health === 'down')) reasons.push('Every backend is down.');
  return { ready: reasons.length === 0, reasons };
}

function time(wall_ms: number | null): string | null {
  return wall_ms === null ? null : new Date(wall_ms).toISOString();
}
