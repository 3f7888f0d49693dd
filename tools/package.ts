import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { bundle } from './package/bundle.ts';
import { packageManifest } from './package/manifest.ts';

/**
 * `npm run package [-- DIR]`: builds the package `flotilla` in `dist/package` (or `DIR/package`) and packs it beside
 * that. Prints the tarball's path, alone, on stdout.
 */
const root = resolve(import.meta.dirname, '..');
const out = resolve(process.argv[2] ?? join(root, 'dist'));
const folder = join(out, 'package');

rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });
for (const name of ['README.md', 'LICENSE', 'CHANGELOG.md']) cpSync(join(root, name), join(folder, name));
cpSync(join(root, 'packages/cli/bin'), join(folder, 'bin'), { recursive: true });
const { imports } = await bundle(root, join(folder, 'dist'));
writeFileSync(join(folder, 'package.json'), `${JSON.stringify(packageManifest(root, imports), null, 2)}\n`);

const packed = execFileSync('npm', ['pack', '--json', '--pack-destination', out, folder], {
  encoding: 'utf8',
  // Nothing of the repository's settings, or of its workspaces, belongs to the package.
  cwd: out,
});
const answer: unknown = JSON.parse(packed);
// npm answers with a list; from version 12 on with an object, by name.
const [tarball] = Object.values(answer as Record<string, { filename: string }>);
process.stdout.write(`${join(out, tarball!.filename)}\n`);
