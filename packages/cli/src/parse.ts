import { InvalidArgumentError } from 'commander';
import { parseDuration } from './terminal/moment.ts';

// Readers for commander: what they throw ends the command as wrong usage, naming the option.

/** For options that may be given several times. */
export function collect(value: string, before: string[] | undefined): string[] {
  return [...(before ?? []), value];
}

/** `key=value`, several times. */
export function collectLabel(
  value: string,
  before: Record<string, string> | undefined,
): Record<string, string> {
  const [, name, text] = /^([^=]+)=(.*)$/.exec(value) ?? [];
  if (name === undefined || text === undefined) throw new InvalidArgumentError('Write it as key=value.');
  return { ...before, [name]: text };
}

export function whole(value: string): number {
  const number = Number(value);
  if (!/^\d+$/.test(value) || !Number.isSafeInteger(number)) {
    throw new InvalidArgumentError('A whole number is expected.');
  }
  return number;
}

export function positive(value: string): number {
  const number = whole(value);
  if (number < 1) throw new InvalidArgumentError('1 is the least.');
  return number;
}

export function port(value: string): number {
  const number = whole(value);
  if (number > 65_535) throw new InvalidArgumentError('A port is 65535 at most.');
  return number;
}

export function duration(value: string): number {
  const duration_ms = parseDuration(value);
  if (duration_ms === undefined) throw new InvalidArgumentError('Write it like 90s, 10m, 24h or 7d.');
  return duration_ms;
}

const LONGEST_DEADLINE_MS = 86_400_000;

/** How long a drain may take; the daemon and the control plane refuse more. */
export function deadline(value: string): number {
  const deadline_ms = duration(value);
  if (deadline_ms > LONGEST_DEADLINE_MS) throw new InvalidArgumentError('A deadline is 1d at most.');
  return deadline_ms;
}

/** A moment: so long ago (`24h`), or a date. Gives ISO-8601 UTC. */
export function moment(value: string): string {
  return momentFrom(value, -1, '24h (ago)');
}

/** A moment that far in the future (`30d`), or a date. */
export function futureMoment(value: string): string {
  return momentFrom(value, 1, '30d (from now)');
}

function momentFrom(value: string, direction: 1 | -1, example: string): string {
  const away_ms = parseDuration(value);
  const time = away_ms === undefined ? Date.parse(value) : Date.now() + direction * away_ms;
  if (Number.isNaN(time))
    throw new InvalidArgumentError(`Write it like ${example}, 2026-01-31 or 2026-01-31T12:00:00Z.`);
  return new Date(time).toISOString();
}
