import { isFaultName, type PlannedFault } from './fault.ts';

export interface FaultChange {
  faults: PlannedFault[];
  for_ms?: number | undefined;
}

/**
 * Reads the body of `POST /sim/fault`: `{"fault": "500", "first": 2}`, `{"fault": "refuse", "for_ms": 1000}`, or
 * `{"fault": null}` to work again. A string is what is wrong with it.
 */
export function readFaultChange(body: Buffer): FaultChange | string {
  let value: unknown;
  try {
    value = JSON.parse(body.toString());
  } catch {
    return 'The body is not JSON.';
  }
  if (typeof value !== 'object' || value === null) return 'The body is no object.';
  const { fault, first, for_ms } = value as { fault?: unknown; first?: unknown; for_ms?: unknown };
  if (for_ms !== undefined && !isPositive(for_ms)) return '`for_ms` is a positive number.';
  if (fault === null) return { faults: [] };
  if (!isFaultName(fault)) return `\`fault\` is null or a fault; there is no ${JSON.stringify(fault)}.`;
  if (first !== undefined && !isPositive(first)) return '`first` is a positive number.';
  return { faults: [{ name: fault, left: first ?? Number.POSITIVE_INFINITY }], for_ms };
}

function isPositive(value: unknown): value is number {
  return typeof value === 'number' && value > 0;
}
