import { readFileSync } from 'node:fs';

/** This package's version. Its manifest is one folder up, from the source and from a build. */
export function version(): string {
  const manifest: unknown = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  return (manifest as { version: string }).version;
}
