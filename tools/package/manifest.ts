import { globSync, readFileSync } from 'node:fs';
import { builtinModules } from 'node:module';
import { join } from 'node:path';

interface Manifest {
  name: string;
  version: string;
  license: string;
  engines: Record<string, string>;
  bin: Record<string, string>;
  dependencies?: Record<string, string>;
}

/** The manifest of what is published: one package, with what its bundle imports, pinned as the workspaces pin it. */
export function packageManifest(root: string, imports: string[]): object {
  const read = (path: string) => JSON.parse(readFileSync(join(root, path), 'utf8')) as Manifest;
  const { name, version, license, engines, bin } = read('packages/cli/package.json');
  const pinned = new Map<string, string>();
  for (const path of globSync('packages/*/package.json', { cwd: root })) {
    const manifest = read(path);
    // What says its version (the daemon, to the control plane) says its own package's.
    if (manifest.version !== version) throw new Error(`${manifest.name} is not of version ${version}.`);
    for (const entry of Object.entries(manifest.dependencies ?? {})) pinned.set(...entry);
  }
  const foreign = imports.filter((specifier) => !builtinModules.includes(specifier));
  const dependencies = foreign.map((dependency) => {
    const at = pinned.get(dependency);
    if (at === undefined) throw new Error(`${dependency} is imported, but no workspace depends on it.`);
    return [dependency, at];
  });
  return {
    name,
    version,
    description:
      'One control plane for AI machines behind NAT: one OpenAI-compatible endpoint, one scheduler.',
    license,
    type: 'module',
    engines,
    bin,
    files: ['bin', 'dist'],
    dependencies: Object.fromEntries(dependencies),
    // On a host with an older Node the launcher uses this one, if it is there; nobody has to have it.
    peerDependencies: { node: '>=24' },
    peerDependenciesMeta: { node: { optional: true } },
  };
}
