import { encode } from '../../../packages/control/src/store/json.ts';
import { rowRefused } from './failure.ts';

/** Columns of JSON: what is in them is not looked at. */
const JSON_COLUMNS = new Set(['metadata', 'descriptor', 'health', 'results', 'token_budget']);

/** An argument as it arrives at a store: a copy from when the call was made, by the JSON that the real ones are sent. */
export function asSent<T>(argument: T): T {
  if (typeof argument !== 'object' || argument === null) return argument;
  return JSON.parse(encode(argument)) as T;
}

/** Every number is a 64-bit integer to a store: one that is none fails the whole call before anything is written. */
export function refuseFractions(value: unknown): void {
  if (typeof value === 'number') {
    if (Number.isSafeInteger(value)) return;
    throw rowRefused('22P02', `invalid input syntax for type bigint: "${value}"`);
  }
  if (typeof value !== 'object' || value === null) return;
  if (Array.isArray(value)) value.forEach(refuseFractions);
  else for (const name in value) if (!JSON_COLUMNS.has(name)) refuseFractions(value[name as never]);
}
