import type { JobBodies, ResultMeasure } from '@flotilla/core';
import type { Tables } from './tables.ts';

export function loadBodies(tables: Tables, id: string): JobBodies | undefined {
  const body = tables.bodies.get(id);
  return body && { request: body.request, result: body.result, erase_at: body.erase_at };
}

export function measureResult(tables: Tables, id: string): ResultMeasure | undefined {
  const body = tables.bodies.get(id);
  if (body === undefined) return undefined;
  const { result, erase_at } = body;
  return { result_bytes: result === null ? null : Buffer.byteLength(result), erase_at };
}

export function loadResult(tables: Tables, id: string): string | null {
  return tables.bodies.get(id)?.result ?? null;
}

export function deleteBodies(tables: Tables, id: string): boolean {
  return tables.bodies.delete(id);
}

export function eraseBodies(tables: Tables, limit: number): number {
  const now = tables.now_ms();
  const over: { job: string; erase_at: number }[] = [];
  for (const [job, { erase_at }] of tables.bodies) {
    if (erase_at !== null && erase_at <= now) over.push({ job, erase_at });
  }
  const gone = over.sort((a, b) => a.erase_at - b.erase_at).slice(0, limit);
  for (const { job } of gone) tables.bodies.delete(job);
  return gone.length;
}
