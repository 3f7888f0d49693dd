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

export const ROLES = ['admin'] as const;
export const SCOPES = ['inference', 'jobs', 'agents', 'nodes:read'] as const;
export type Scope = (typeof SCOPES)[number];

/** Credentials by prefix: what a leaked string is can be told, and found by a secret scanner. */
export const CREDENTIAL_PREFIX = { apiKey: 'flk_', enrolmentToken: 'fle_', node: 'fln_' } as const;
