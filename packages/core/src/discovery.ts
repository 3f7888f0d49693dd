import {
  type BackendTold,
  DISCOVERY_STAGES,
  type DiscoveryReason,
  type DiscoveryStage,
  NODE_FEATURES,
} from '@flotilla/protocol';
import type { AskableNode, CatalogueRecord, DiscoveryEnd } from './ports/model-discoveries.ts';

/** The rules of model discovery: whom to ask, how a request ends, which list has become old, what to say of a failure. */

/** Why a node cannot be asked, or null. One that is missed for a moment may be back before the deadline. */
export function discoveryRefusal({ state, connected, features }: AskableNode): DiscoveryReason | null {
  if (connected) return features.includes(NODE_FEATURES.modelDiscovery) ? null : 'unsupported';
  return state === 'suspect' ? null : 'offline';
}

/**
 * How the request ends with what the node told. It is `completed` only where each backend told its list: one failure
 * among lists is a failure, with the lists beside it.
 * @param asked the one backend that was asked for; null: all
 */
export function discoveryEnd(
  told: readonly BackendTold[],
  asked: string | null,
): Pick<DiscoveryEnd, 'state' | 'reason' | 'stage' | 'waiting_for' | 'results'> {
  const results = asked === null ? [...told] : told.filter(({ backend }) => backend === asked);
  const failures = results.filter((result) => result.outcome === 'failed');
  if (results.length === 0)
    return { state: 'failed', reason: 'no_backend', stage: 'claimed', waiting_for: asked, results };
  if (failures.length === 0)
    return { state: 'completed', reason: null, stage: 'listing', waiting_for: null, results };
  // Silence is told of only where nothing else is known to be wrong.
  const slow = failures.every(({ reason }) => reason === 'timed_out');
  const telling = slow ? failures : failures.filter(({ reason }) => reason !== 'timed_out');
  const worst = telling.reduce((a, b) => (rank(b.stage) < rank(a.stage) ? b : a));
  return {
    state: slow ? 'timed_out' : 'failed',
    reason: worst.reason,
    stage: worst.stage,
    waiting_for: worst.backend,
    results,
  };
}

function rank(stage: DiscoveryStage): number {
  return DISCOVERY_STAGES.indexOf(stage);
}

/** Whether the backend has become another since it told this list. One that tells no version now is not another. */
export function catalogueOutdated(
  catalogue: Pick<CatalogueRecord, 'kind' | 'version'>,
  backend: { kind: string; version?: string | undefined },
): boolean {
  if (backend.kind !== 'unknown' && backend.kind !== catalogue.kind) return true;
  return backend.version !== undefined && catalogue.version !== null && backend.version !== catalogue.version;
}

export interface DiscoveryFailure {
  reason: DiscoveryReason;
  stage: DiscoveryStage;
  /** The node's name. */
  node: string;
  backend: string | null;
  /** What the node saw. */
  detail?: string | undefined;
}

/** A failure in words: what is wrong, what to do, and how to go without a list. */
export function discoveryMessage(failure: DiscoveryFailure): string {
  const { reason, node, backend } = failure;
  const detail = failure.detail === undefined ? '' : ` (${failure.detail.replace(/\.$/, '')})`;
  const which = backend ?? 'a model server';
  const by_hand =
    `Its models can be named by hand: 'models' under its entry of 'backends' in the node.yaml of ${node}, ` +
    'then SIGHUP or a restart of the daemon.';
  const last = `The last lists are kept: flotilla nodes models ${node}.`;
  switch (reason) {
    case 'offline':
      return `${node} is not connected, so it cannot be asked. See why: flotilla nodes show ${node}. ${last}`;
    case 'unsupported':
      return (
        `The daemon on ${node} cannot be asked for its models: it is older than that, or speaks plain HTTP. ` +
        `Upgrade Flotilla there. What it says by itself: flotilla nodes show ${node}. ${by_hand}`
      );
    case 'no_backend':
      return backend === null
        ? `${node} knows no model server. Start one at its usual port, or name it under 'backends' in the node.yaml ` +
            `of ${node}: its url, and its models where it has no list.`
        : `${node} has no backend ${backend} now${detail}. Which it has: flotilla nodes show ${node}. Name it under ` +
            `'backends' in the node.yaml of ${node}.`;
    case 'backend_down':
      return `${which} on ${node} gave no list${detail}. Look after it there, then ask again. ${by_hand}`;
    case 'not_authorised':
      return (
        `${which} on ${node} wants another key${detail}. Give it as 'api_key' under its entry of 'backends' in the ` +
        `node.yaml of ${node}. ${by_hand}`
      );
    case 'timed_out':
      return `${slowness(failure)}${detail} before the deadline. Ask again later. ${by_hand}`;
  }
}

function slowness({ stage, node, backend }: DiscoveryFailure): string {
  const which = backend ?? 'its model server';
  switch (stage) {
    case 'pending':
      return `${node} did not take the request: its link or its daemon stands still. It was not taken`;
    case 'claimed':
      return `${node} took the request, and began to ask no model server`;
    case 'connecting':
      return `No connection from ${node} to ${which} came about`;
    case 'identifying':
      return `${which} on ${node} did not say what it is`;
    case 'listing':
      return `${which} on ${node} did not list its models`;
  }
}
