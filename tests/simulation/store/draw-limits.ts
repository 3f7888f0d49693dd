import {
  type Allowance,
  countFrom,
  type Draw,
  type Drawn,
  drawShare,
  leaveShare,
  newAllowance,
} from '@flotilla/core';
import { type Tables } from './tables.ts';

export function drawLimits(tables: Tables, replica: string, draws: readonly Draw[]): Drawn[] | null {
  if (!tables.replicas.has(replica)) return null;
  const now = tables.now_ms();
  return draws.map((draw) => {
    const key = tables.keys.get(draw.key);
    const before = tables.allowances.get(nameOf(draw)) ?? newAllowance(draw.key, draw.kind);
    const start = countFrom(before, draw, key, now);
    const count = start === null ? null : { start, ...countSpent(tables, draw.key, start) };
    const { allowance, drawn } = drawShare(before, replica, draw, key, now, count);
    tables.allowances.set(nameOf(draw), allowance);
    return drawn;
  });
}

/** What a replica that is no more held. */
export function leaveLimits(tables: Tables, replica: string): void {
  for (const [name, row] of tables.allowances)
    tables.allowances.set(name, leaveShare(row, replica, tables.now_ms()));
}

function countSpent(tables: Tables, key: string, start: number): { spent: number; pledged: number } {
  let spent = 0;
  let pledged = 0;
  for (const row of tables.usage.values())
    if (row.key === key && row.created_at >= start) spent += row.prompt_tokens + row.completion_tokens;
  for (const [day, tokens] of tables.swept_usage.get(key) ?? []) if (day >= start) spent += tokens;
  for (const job of tables.jobs.open()) {
    if (job.attached || job.key !== key || job.created_at < start) continue;
    if (job.accepted_by === null || !tables.replicas.has(job.accepted_by))
      pledged += job.reserved_tokens ?? 0;
  }
  return { spent, pledged };
}

function nameOf({ key, kind }: Pick<Allowance, 'key' | 'kind'>): string {
  return `${kind} ${key}`;
}
