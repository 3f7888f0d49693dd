const UNITS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;
type Unit = keyof typeof UNITS;

/** `90s`, `10m`, `1.5h`, `7d`, `250ms`. Undefined when it is none. */
export function parseDuration(text: string): number | undefined {
  const [, number, unit] = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/.exec(text) ?? [];
  if (number === undefined || unit === undefined) return undefined;
  return Math.round(Number(number) * UNITS[unit as Unit]);
}

/** The largest unit that says enough: `420ms`, `8s`, `3m`, `5h`, `12d`. */
export function formatDuration(duration_ms: number): string {
  if (duration_ms < 1000) return `${Math.round(duration_ms)}ms`;
  for (const unit of ['d', 'h', 'm'] as const) {
    if (duration_ms >= 2 * UNITS[unit]) return `${Math.round(duration_ms / UNITS[unit])}${unit}`;
  }
  const seconds = duration_ms / 1000;
  return `${seconds < 10 ? seconds.toFixed(1).replace(/\.0$/, '') : Math.floor(seconds)}s`;
}

/** How long ago, by this machine's clock. */
export function ago(time: string | null, now = Date.now()): string {
  if (time === null) return 'never';
  const past_ms = now - Date.parse(time);
  if (past_ms < 0) return `in ${formatDuration(-past_ms)}`;
  return past_ms < 1000 ? 'now' : `${formatDuration(past_ms)} ago`;
}
