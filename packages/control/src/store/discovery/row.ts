import { NOW_MS } from '../sql.ts';

/** `pending` and `running`, as the partial indexes say it. */
export const IS_OPEN = `state in ('pending', 'running')`;

export const COLUMNS = `d.id, d.node, nullif(d.backend, '') as backend, d.state, d.stage, d.waiting_for, d.reason,
  d.results, d.created_at, d.expires_at, d.finished_at, d.expires_at - ${NOW_MS} as left_ms`;
