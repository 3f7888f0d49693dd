import { type Clock, type Timings, matchesModel } from '@flotilla/core';
import type { Health, NodeView } from '@flotilla/protocol';
import type { FleetNode } from './node.ts';

/** A second daemon tries again every few seconds: once it has been quiet for so long, it is gone. */
const ALARM_MS = 60_000;

/** A node as the API shows it: what it is, what it does, and why it is as it is. @param replica this one */
export function nodeView(node: FleetNode, clock: Clock, timings: Timings, replica: string): NodeView {
  const { record, descriptor } = node;
  const backends = (descriptor?.backends ?? []).map((backend) => {
    const reported = node.health.get(backend.id);
    return {
      id: backend.id,
      kind: backend.kind,
      version: backend.version ?? null,
      pool: backend.pool,
      health: reported?.health ?? ('down' as const),
      reason: reported === undefined ? 'not reported yet' : (reported.reason ?? null),
      models: backend.models.map((model) => {
        const own = reported?.models.find((entry) => entry.id === model.id);
        return {
          id: model.id,
          operations: model.operations,
          loaded: model.loaded ?? null,
          health: own?.health ?? reported?.health ?? ('down' as const),
          reason: own?.reason ?? null,
          allowed: matchesModel(record.allowed_models, model.id),
        };
      }),
    };
  });
  return {
    id: record.id,
    name: record.name,
    state: node.state,
    health: overall(node, backends),
    cordoned: record.cordoned,
    drain:
      record.drain_deadline_at === null
        ? null
        : { deadline_at: iso(record.drain_deadline_at), in_flight: node.ledger.holders.size },
    labels: record.labels,
    region: descriptor?.region ?? null,
    version: descriptor?.version ?? null,
    platform: descriptor?.platform ?? null,
    allowed_models: record.allowed_models,
    pools: [...node.ledger.pools.values()].map((pool) => ({
      id: pool.id,
      capacity: pool.capacity,
      capacity_from: pool.capacity_from,
      reserved: pool.reserved,
      reported: pool.reported,
    })),
    backends,
    journal: { health: node.journal.health, reason: node.journal.reason ?? null },
    epoch: node.epoch,
    created_at: iso(record.created_at),
    replica: node.link !== null ? replica : node.elsewhere && node.state !== 'offline' ? node.replica : null,
    connected_at: node.link === null || node.connected_at === null ? null : iso(node.connected_at),
    // Nothing before the second beat: the first one has no round trip to tell of.
    link_rtt_ms: node.link !== null && node.link.rtt_ms > 0 ? Math.round(node.link.rtt_ms * 10) / 10 : null,
    last_seen_at: node.last_seen_at === null ? null : iso(node.last_seen_at),
    why: why(node, backends, clock, timings),
    host: node.host,
  };
}

function overall(node: FleetNode, backends: { health: Health }[]): Health {
  if (node.stalled) return 'degraded';
  if (backends.every((backend) => backend.health === 'healthy'))
    return node.journal_down ? 'degraded' : 'healthy';
  return backends.every((backend) => backend.health === 'down') ? 'down' : 'degraded';
}

function why(
  node: FleetNode,
  backends: NodeView['backends'],
  clock: Clock,
  timings: Timings,
): NodeView['why'] {
  const { liveness } = node;
  // Before its first link to this replica only the wait for it has a time.
  const silent_ms =
    liveness.last_beat_ms === null || node.connected_at === null
      ? null
      : Math.round(clock.now_ms() - liveness.last_beat_ms);
  // What a node said last that is away now is not why it serves nobody.
  const away = liveness.state === 'offline' || liveness.state === 'revoked';
  const failing = (away ? [] : backends).flatMap((backend) => {
    const own =
      backend.health === 'healthy' ? [] : [`${backend.id} is ${backend.health}${because(backend.reason)}`];
    const models = backend.models
      .filter((model) => model.health !== 'healthy' && model.health !== backend.health)
      .map((model) => `${backend.id}: ${model.id} is ${model.health}${because(model.reason)}`);
    return [...own, ...models];
  });
  if (node.journal_down) failing.push(`it takes no detached work${because(node.journal.reason ?? null)}`);
  return {
    summary: summary(node, failing),
    last_beat_ms_ago: silent_ms,
    missed_beats: silent_ms === null ? 0 : missedBeats(silent_ms, timings),
    close_reason:
      node.link === null
        ? liveness.last_beat_ms === null
          ? node.record.close_reason
          : liveness.reason
        : null,
    failing_probes: failing,
    warnings: node.warnings,
    alarms: node.alarm === null || clock.now_ms() - node.alarm.at_ms > ALARM_MS ? [] : [node.alarm.text],
  };
}

/** A beat is missed once it is half an interval late; before that it may stand behind output on a slow line. */
function missedBeats(silent_ms: number, { heartbeat_ms, jitter_ms }: Timings): number {
  return Math.max(0, Math.floor((silent_ms - heartbeat_ms / 2) / (heartbeat_ms + jitter_ms)));
}

function summary(node: FleetNode, failing: string[]): string {
  const parts = [`${node.state}: ${node.liveness.reason}`];
  if (node.stalled) parts.push("its daemon's main thread stands still");
  if (node.record.drain_deadline_at !== null) {
    parts.push(node.ledger.holders.size === 0 ? 'it is drained: nothing runs on it' : 'it is being drained');
  } else if (node.record.cordoned) parts.push('it is cordoned');
  if (node.stopping) parts.push('its daemon is stopping');
  if (node.descriptor !== null && node.descriptor.backends.length === 0) parts.push('it offers no model');
  if (failing.length > 0) parts.push(failing[0]!);
  return parts.join('; ');
}

function because(reason: string | null): string {
  return reason === null ? '' : `: ${reason}`;
}

function iso(wall_ms: number): string {
  return new Date(wall_ms).toISOString();
}
