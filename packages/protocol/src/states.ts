/** Job, attempt and node states: DESIGN's two state machines by name. `packages/core` holds their rules. */
export const JOB_STATES = [
  'queued',
  'leased',
  'running',
  'succeeded',
  'failed',
  'timed_out',
  'cancelled',
] as const;
export type JobState = (typeof JOB_STATES)[number];
export const TERMINAL_JOB_STATES = ['succeeded', 'failed', 'timed_out', 'cancelled'] as const;
export type TerminalJobState = (typeof TERMINAL_JOB_STATES)[number];

export function isTerminal(state: JobState): state is TerminalJobState {
  return (TERMINAL_JOB_STATES as readonly string[]).includes(state);
}

export const NODE_STATES = ['pending', 'online', 'suspect', 'offline', 'revoked'] as const;
export type NodeState = (typeof NODE_STATES)[number];

/** A request to a node for its models: `pending` until the node has taken it, `running` until it ends one way. */
export const DISCOVERY_STATES = ['pending', 'running', 'completed', 'failed', 'timed_out'] as const;
export type DiscoveryState = (typeof DISCOVERY_STATES)[number];

/** Why a discovery has no list, or not all lists. */
export const DISCOVERY_REASONS = [
  /** The node is not connected. */
  'offline',
  /** The model server is not there, or answers something that is no list. */
  'backend_down',
  /** The node has no such backend, or none at all. */
  'no_backend',
  /** The deadline passed, or the model server did not answer; the stage says where. */
  'timed_out',
  /** The node is too old to be asked. */
  'unsupported',
  /** The model server wants another key. */
  'not_authorised',
] as const;
export type DiscoveryReason = (typeof DISCOVERY_REASONS)[number];

/** How far a discovery came, in this order. */
export const DISCOVERY_STAGES = ['pending', 'claimed', 'connecting', 'identifying', 'listing'] as const;
export type DiscoveryStage = (typeof DISCOVERY_STAGES)[number];

export const ROLES = ['admin'] as const;
export const SCOPES = ['inference', 'jobs', 'agents', 'nodes:read'] as const;
export type Scope = (typeof SCOPES)[number];

/** What a token budget is counted over: calendar periods in UTC, weeks from Monday; `total` never begins anew. */
export const BUDGET_PERIODS = ['day', 'week', 'month', 'total'] as const;
export type BudgetPeriod = (typeof BUDGET_PERIODS)[number];

/** Credentials by prefix: what a leaked string is can be told, and found by a secret scanner. */
export const CREDENTIAL_PREFIX = { apiKey: 'flk_', enrolmentToken: 'fle_', node: 'fln_' } as const;
