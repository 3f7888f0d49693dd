import { writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { PAGES } from './reference/pages.ts';

// `npm run docs`. tests/reference.test.ts fails while a page differs from what this writes.
for (const [path, render] of Object.entries(PAGES)) {
  writeFileSync(resolve(import.meta.dirname, '..', path), render());
}
