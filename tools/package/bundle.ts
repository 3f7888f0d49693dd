import { existsSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { type OutputChunk, rolldown } from 'rolldown';

/**
 * What starts by itself: the program, and each thread or process that it starts from a file of its own. The names are
 * those by which the sources find them: a bundle lies flat in one folder, so `./pglite-worker.js` beside the chunk
 * that starts it, `./link/thread.js` below it.
 */
const ENTRIES: Record<string, string> = {
  main: 'packages/cli/src/main.ts',
  'pglite-worker': 'packages/control/src/store/pglite-worker.ts',
  'link/thread': 'packages/daemon/src/link/thread.ts',
};

export interface Bundle {
  /** The packages that the bundle imports at run time. */
  imports: string[];
}

/** Bundles our own packages into `to`, and leaves everything else to be imported. */
export async function bundle(root: string, to: string): Promise<Bundle> {
  const build = await rolldown({
    cwd: root,
    input: ENTRIES,
    platform: 'node',
    external: (id) => !id.startsWith('.') && !id.startsWith('/') && !id.startsWith('@flotilla/'),
    onLog(level, log) {
      if (level === 'warn') throw new Error(`The bundle is not clean: ${log.message}`);
    },
  });
  try {
    const { output } = await build.write({
      dir: to,
      format: 'esm',
      entryFileNames: '[name].js',
      chunkFileNames: '[name]-[hash].js',
      sourcemap: false,
    });
    const chunks = output.filter((item) => item.type === 'chunk');
    const missing = chunks.flatMap((chunk) => missingFiles(to, chunk));
    if (missing.length > 0) throw new Error(lacking(missing));
    return { imports: packagesOf(chunks) };
  } finally {
    await build.close();
  }
}

/** Files that a chunk names relative to itself, as a worker's, and that are not in the package. Its manifest comes last. */
function missingFiles(to: string, { fileName, code }: OutputChunk): string[] {
  const folder = dirname(join(to, fileName));
  return [...code.matchAll(/(["'`])(\.{1,2}\/[\w./-]+\.(?:js|mjs|json|sql|html|wasm))\1/g)]
    .map(([, , path]) => resolve(folder, path!))
    .filter((path) => relative(dirname(to), path) !== 'package.json' && !existsSync(path))
    .map((path) => `${relative(to, path)} (named in ${fileName})`);
}

function lacking(missing: string[]): string {
  return (
    `The bundle names files that it does not have: ${missing.join(', ')}. ` +
    'A worker, or a process started from a file of its own, is an entry in tools/package/bundle.ts.'
  );
}

function packagesOf(chunks: OutputChunk[]): string[] {
  const specifiers = chunks.flatMap(({ imports, dynamicImports }) => [...imports, ...dynamicImports]);
  const files = new Set(chunks.map(({ fileName }) => fileName));
  const foreign = specifiers.filter((specifier) => !files.has(specifier) && !specifier.startsWith('node:'));
  return [...new Set(foreign.map(packageOf))].toSorted();
}

function packageOf(specifier: string): string {
  const [scope = '', name = ''] = specifier.split('/');
  return scope.startsWith('@') ? `${scope}/${name}` : scope;
}
