import { existsSync, globSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { ERROR_CODES, ERRORS } from '@flotilla/protocol';
import { FlotillaApiError } from '@flotilla/sdk';
import { describe, expect, test } from 'vitest';
import { RETRYABLE } from '../packages/sdk/src/error.ts';
import { PAGES } from '../tools/reference/pages.ts';

const root = resolve(import.meta.dirname, '..');
const onDisk = (path: string) => readFileSync(resolve(root, path), 'utf8');

describe('the reference', () => {
  test.each(Object.keys(PAGES))('%s is what its source says', (path) => {
    expect(onDisk(path), `${path} is out of date: npm run docs`).toBe(PAGES[path]!());
  });

  test('names no place and no person of the machine that wrote it', () => {
    for (const render of Object.values(PAGES)) expect(render()).not.toMatch(/\/(?:home|root|Users)\//);
  });
});

describe('the error catalogue', () => {
  test('is that of the documentation', () => {
    const documented = [...onDisk('docs/reference/errors.md').matchAll(/^\| `(\w+)` \| (\d{3}) \|/gm)];
    expect(
      documented.map(([, code, status]) => `${code} ${status}`),
      'npm run docs',
    ).toEqual(ERROR_CODES.map((code) => `${code} ${ERRORS[code].status}`));
  });

  test('is that of the SDK', () => {
    const ofClient = ['unreachable', 'timed_out', 'unreadable', 'cut'];
    expect(Object.keys(RETRYABLE).sort()).toEqual([...ERROR_CODES, ...ofClient].sort());
    for (const code of ERROR_CODES) {
      expect([code, new FlotillaApiError('', { code }).retryable]).toEqual([code, ERRORS[code].retryable]);
    }
  });
});

describe('every page', () => {
  const pages = globSync(['*.md', 'docs/**/*.md'], { cwd: root });

  test.each(pages)('%s links to what is there', (path) => {
    const links = [...onDisk(path).matchAll(/\]\((?!https?:|#)([^)#\s]+)/g)].map((match) => match[1]!);
    expect(links.filter((link) => !existsSync(join(root, dirname(path), link)))).toEqual([]);
  });

  test('of the architecture names folders and files that are there', () => {
    const named = [...onDisk('ARCHITECTURE.md').matchAll(/`((?:\w+\/src|tests|bench|tools)\/[\w/.-]*)`/g)];
    const places = named.map((match) => match[1]!);
    expect(places.length).toBeGreaterThan(12);
    const missing = places.filter(
      (place) => !existsSync(join(root, place)) && !existsSync(join(root, 'packages', place)),
    );
    expect(missing).toEqual([]);
  });
});
