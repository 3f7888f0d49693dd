#!/usr/bin/env node
// The launcher. Plain JavaScript that old Node versions can read: it finds a Node
// that is new enough for the program itself and hands over to it. In the repository
// that is TypeScript, run by type stripping; in the package, the bundle made of it.
import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import module, { createRequire } from 'node:module';
import { constants } from 'node:os';
import { dirname, join } from 'node:path';
import { isatty } from 'node:tty';
import { fileURLToPath } from 'node:url';
import { setFlagsFromString } from 'node:v8';

const REQUIRED_MAJOR = 24;
const PACKAGED = '../dist/main.js';
const IN_REPOSITORY = existsSync(new URL('../src/main.ts', import.meta.url));

if (Number(process.versions.node.split('.')[0]) >= REQUIRED_MAJOR) {
  // While a process warms up, much of what it makes for a request outlives the small young generation of that time. V8
  // concludes that such things live long and makes them in the old one from then on, where each, once it is over, keeps
  // all of its request from the collector until the next full run. Before the cache below, which goes by flags.
  setFlagsFromString('--no-allocation-site-pretenuring');
  // What is compiled once is kept beside the code, where only those can write who could change the code as well, and goes
  // with it. Threads and programs that are started from here find it too. Where nothing can be written, nothing is kept.
  if (process.env.NODE_COMPILE_CACHE === undefined) {
    const cache = new URL('../node_modules/.cache/flotilla', import.meta.url);
    process.env.NODE_COMPILE_CACHE = fileURLToPath(cache);
  }
  module.enableCompileCache();
  await (IN_REPOSITORY ? import('../src/main.ts') : import(PACKAGED));
} else {
  const node = bundledNode();
  if (node === undefined) {
    process.stderr.write(
      `flotilla needs Node.js ${REQUIRED_MAJOR} or newer; this is ${process.versions.node}.\n${advice()}`,
    );
    process.exitCode = 1;
  } else {
    handOver(node);
  }
}

/** The binary that the `node` package put next to us, if it is there and new enough. */
function bundledNode() {
  try {
    const manifest = createRequire(import.meta.url).resolve('node/package.json');
    const major = Number(JSON.parse(readFileSync(manifest, 'utf8')).version.split('.')[0]);
    const binary = join(dirname(manifest), 'bin', process.platform === 'win32' ? 'node.exe' : 'node');
    return major >= REQUIRED_MAJOR && existsSync(binary) ? binary : undefined;
  } catch {
    return undefined;
  }
}

/** Where no new Node is found: how to get one. */
function advice() {
  if (IN_REPOSITORY) {
    return 'Run npm ci. If that was done already, npm blocked an install script: npm rebuild node --ignore-scripts=false\n';
  }
  // Into the folder of this file, which is the same wherever npm put flotilla: in a project, or with -g. And the one for
  // this machine under the name of `node`: that one would fetch it by an install script, which npm may not run.
  const { platform, arch } = process;
  const name = `node${platform === 'darwin' && arch === 'arm64' ? '-bin' : ''}-${platform === 'win32' ? 'win' : platform}-${arch}`;
  const path = dirname(fileURLToPath(import.meta.url));
  const folder = platform === 'win32' ? `"${path}"` : `'${path.replaceAll("'", `'\\''`)}'`;
  return (
    'Install it from https://nodejs.org, or with a version manager (nvm install 24). Or let npm put one beside flotilla, for\n' +
    'flotilla alone, as the user who installed it; after an update of flotilla do so again:\n' +
    `  npm install --prefix ${folder} node@npm:${name}@${REQUIRED_MAJOR}\n`
  );
}

function handOver(node) {
  const child = spawn(node, [...process.execArgv, fileURLToPath(import.meta.url), ...process.argv.slice(2)], {
    stdio: 'inherit',
  });
  // Having a handler keeps this process alive until the child has ended. A terminal
  // sends Ctrl-C to the whole process group, so the child gets that one itself: only
  // signals that were aimed at us are passed on, and SIGINT counts as such when there
  // is no terminal: on none of the three, since any of them may be redirected.
  const inTerminal = [0, 1, 2].some((descriptor) => isatty(descriptor));
  const forward = (signal) => {
    if (signal === 'SIGINT' && inTerminal) return;
    child.kill(signal);
  };
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'];
  for (const signal of signals) process.on(signal, forward);

  child.on('error', (error) => {
    process.stderr.write(`flotilla could not start ${node}: ${error.message}\n`);
    process.exitCode = 1;
  });
  child.on('exit', (code, signal) => {
    for (const name of signals) process.off(name, forward);
    if (signal === null) {
      process.exitCode = code ?? 1;
      return;
    }
    process.exitCode = 128 + (constants.signals[signal] ?? 0);
    process.kill(process.pid, signal);
  });
}
