import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** What is measured beside Flotilla: packages of bench/package.json, installed into bench/node_modules and nowhere else. */
const HERE = fileURLToPath(new URL('.', import.meta.url));

export function hasPeer(name: string): boolean {
  return existsSync(`${HERE}node_modules/${name}/package.json`);
}

/** Where that cannot be done, the peers are left out and the reports say so. */
export function installPeers(say: (what: string) => void): void {
  if (hasPeer('pg-boss')) return;
  say('Peers are not installed: npm ci --prefix bench.');
  const { status } = spawnSync('npm', ['ci', '--prefix', HERE], { stdio: ['ignore', 'ignore', 'inherit'] });
  if (status !== 0) say('They could not be installed, and are left out.');
}
