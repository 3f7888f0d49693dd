import { execFile } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { parse, parseAllDocuments } from 'yaml';
import { ROUTES } from '@flotilla/protocol';
import { describe, expect, onTestFinished, test } from 'vitest';
import { readControlConfig } from '../packages/control/src/config.ts';
import { FLUSH_WITHIN_MS } from '../packages/control/src/main.ts';
import { openPlane } from './support/plane.ts';
import { complaintOf, CONTROL_VARIABLES, READ_VARIABLES } from './support/command-line.ts';

/**
 * What lies in `deploy/` against the program itself: each command, variable, path and endpoint that a file names is
 * there. That an image is built and run is not tested: it needs a container engine.
 */
const run = promisify(execFile);
const root = join(import.meta.dirname, '..');
const folder = join(root, 'deploy');
const read = (name: string) => readFileSync(join(folder, name), 'utf8');
const defaults = readControlConfig({});
/** Where the image has the files that its build copies there. */
const HEALTHCHECK = '/usr/local/lib/flotilla-healthcheck.js';

const instructions = read('Dockerfile')
  .replaceAll('\\\n', ' ')
  .split('\n')
  .filter((line) => /^[A-Z]/.test(line));
const all = (name: string) =>
  instructions.filter((line) => line.startsWith(`${name} `)).map((line) => line.slice(name.length + 1));
const wordsOf = (name: string) => JSON.parse(all(name)[0]!) as string[];

interface Service {
  image: string;
  build?: { context: string; dockerfile: string };
  command?: string[];
  environment?: Record<string, string>;
  env_file?: string;
  healthcheck?: { test: string[] };
  ports?: string[];
  volumes?: string[];
  stop_grace_period?: string;
  depends_on?: Record<string, unknown>;
}
const compose = parse(read('compose.yaml')) as {
  services: Record<'database' | 'bus' | 'control' | 'balancer' | 'node', Service>;
};
const { control, balancer, node } = compose.services;

describe('the image', () => {
  test('is made of files that are there, on the Node that the program needs, as no root', () => {
    const copied = all('COPY').filter((line) => !line.startsWith('--from'));
    const sources = copied.flatMap((line) => line.split(' ').slice(0, -1));
    expect(sources.filter((path) => !existsSync(join(root, path)))).toEqual([]);
    const { engines } = JSON.parse(readFileSync(join(root, 'packages/cli/package.json'), 'utf8')) as {
      engines: { node: string };
    };
    expect(Number(engines.node.replace(/\D/g, ''))).toBeLessThanOrEqual(24);
    for (const image of all('FROM')) expect(image).toMatch(/^node:24-[\w-]+( AS build)?$/);
    expect(existsSync(join(root, /node (tools\/\S+)/.exec(all('RUN')[0]!)![1]!))).toBe(true);
    expect(all('USER').at(-1)).toBe('node');
  });

  test('starts what the program has, with settings that it reads, at its port', () => {
    expect(complaintOf(wordsOf('CMD'))).toBeUndefined();
    const variables = all('ENV').flatMap((line) => line.split(' ').map((pair) => pair.split('=')[0]!));
    expect(variables.filter((name) => !READ_VARIABLES.has(name))).toEqual([]);
    expect(all('EXPOSE')).toEqual([String(defaults.port)]);
    expect(all('COPY')).toContain(`deploy/healthcheck.js ${HEALTHCHECK}`);
    expect(all('HEALTHCHECK')[0]).toContain(`CMD ["node", "${HEALTHCHECK}"]`);
  });

  test('keeps secrets and what is not needed out of its build', () => {
    const ignored = read('Dockerfile.dockerignore').split('\n');
    expect(ignored).toEqual(expect.arrayContaining(['.git', '**/node_modules', '**/.env']));
    const needed = [
      'packages',
      'tools',
      'deploy',
      'package.json',
      'package-lock.json',
      '.npmrc',
      'README.md',
    ];
    expect(ignored.filter((name) => needed.includes(name))).toEqual([]);
  });
});

test('the health of a container is whether its control plane is ready', async () => {
  const plane = await openPlane();
  const health = (port: string, ...args: string[]) =>
    run(process.execPath, [join(folder, 'healthcheck.js'), ...args], { env: { FLOTILLA_PORT: port } }).then(
      () => 'ready',
      (error: { code: number }) => error.code,
    );
  const { port } = plane.control;
  try {
    expect(await health(String(port))).toBe('ready');
    expect(await health('1', `http://127.0.0.1:${port}/readyz`)).toBe('ready');
    expect(await health('1', `http://127.0.0.1:${port}/nothing`)).toBe(1);
  } finally {
    await plane.close();
  }
  expect(await health(String(port))).toBe(1);
});

describe('the compose file', () => {
  test('builds that image, and starts what the program has', () => {
    const { context, dockerfile } = control.build!;
    expect(existsSync(join(folder, context, dockerfile))).toBe(true);
    expect(node.image).toBe(control.image);
    for (const { command } of [control, node]) expect(complaintOf(command!)).toBeUndefined();
    expect(balancer.volumes).toEqual(['./Caddyfile:/etc/caddy/Caddyfile:ro']);
    const routes = read('Caddyfile');
    expect(routes.match(/dynamic a .*(?= \{)/g)).toEqual(Array(2).fill(`dynamic a control ${defaults.port}`));
    expect(routes).toContain(`:${defaults.port} {`);
    // Sessions are of one replica.
    expect(routes).toMatch(
      /@nodes \{\s+path \/node\/v1\/\*\s+not path \/node\/v1\/link\s+\}\n\treverse_proxy @nodes \{[^@]*lb_policy header Authorization/,
    );
    expect(balancer.ports).toEqual([
      expect.stringMatching(new RegExp(`:${defaults.port}:${defaults.port}$`)),
    ]);
    expect(node.command).toContain(`http://control:${defaults.port}`);
    expect(node.healthcheck!.test).toEqual(['CMD', 'node', HEALTHCHECK, 'http://127.0.0.1:7401/readyz']);
    expect(Number.parseInt(control.stop_grace_period!, 10) * 1000).toBeGreaterThan(
      defaults.drain_timeout_ms + FLUSH_WITHIN_MS,
    );
  });

  test('sets what the program reads, and asks for what .env.example has', () => {
    const named = Object.keys(control.environment!);
    expect(named.filter((name) => !CONTROL_VARIABLES.has(name))).toEqual([]);
    const { FLOTILLA_SECRET_KEY: _, ...environment } = control.environment!;
    const { DATABASE_URL, NATS_URL } = environment as Record<string, string>;
    const config = readControlConfig({ DATABASE_URL: DATABASE_URL!, NATS_URL: NATS_URL! });
    expect([config.database_url, config.nats_url]).toEqual([
      expect.stringContaining('@database/'),
      expect.stringMatching(/@bus$/),
    ]);
    expect(Object.keys(compose.services)).toEqual(expect.arrayContaining(['database', 'bus']));
    const asked = new Set([...read('compose.yaml').matchAll(/\$\{(\w+)/g)].map((match) => match[1]!));
    expect([...asked].filter((name) => !examples().has(name))).toEqual([]);
    expect(control.env_file).toBe('.env');
  });

  test('.env.example has only what something reads, with values that are taken', () => {
    const asked = read('compose.yaml');
    const unread = [...examples().keys()].filter(
      (name) => !CONTROL_VARIABLES.has(name) && !asked.includes(`\${${name}`),
    );
    expect(unread).toEqual([]);
    expect(readControlConfig(Object.fromEntries(examples())).warnings).toEqual([]);
  });
});

/** Those that are commented out, too. */
function examples(): Map<string, string> {
  const lines = read('.env.example').matchAll(/^(?:# )?([A-Z][A-Z_]+)=(.*)$/gm);
  return new Map([...lines].map((match) => [match[1]!, match[2]!]));
}

describe('the unit of the control plane', () => {
  const unit = read('flotilla-control.service');
  const valuesOf = (name: string) =>
    [...unit.matchAll(new RegExp(`^${name}=(.*)$`, 'gm'))].map((match) => match[1]!);

  test('starts what the program has, with room for what its settings allow', () => {
    const [command, ...words] = valuesOf('ExecStart')[0]!.split(' ');
    expect(command).toMatch(/\/flotilla$/);
    expect(complaintOf(words)).toBeUndefined();
    for (const pair of valuesOf('Environment')) expect(CONTROL_VARIABLES).toContain(pair.split('=')[0]);
    expect(Number(valuesOf('TimeoutStopSec')[0]) * 1000).toBeGreaterThan(
      defaults.drain_timeout_ms + FLUSH_WITHIN_MS,
    );
    expect(Number(valuesOf('LimitNOFILE')[0])).toBeGreaterThan(defaults.connection_limit);
    expect(valuesOf('Environment')).toEqual([`FLOTILLA_DATA_DIR=/var/lib/${valuesOf('StateDirectory')[0]}`]);
  });

  test('is one that systemd takes', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'flotilla-unit-'));
    onTestFinished(() => rmSync(dir, { recursive: true }));
    const file = join(dir, 'flotilla-control.service');
    // Where the program is installed is the host's; here it is not.
    writeFileSync(file, unit.replace('/usr/local/bin/flotilla', process.execPath));
    const verified: { stderr?: string; code?: unknown } = await run('systemd-analyze', [
      'verify',
      file,
    ]).catch((error: { stderr: string; code: unknown }) => error);
    // Where there is no systemd, nobody can say.
    expect(verified.code === 'ENOENT' ? '' : verified.stderr).toBe('');
  });
});

describe('the manifests', () => {
  interface Manifest {
    kind: string;
    metadata: { name: string };
    spec: {
      replicas?: number;
      ports?: { port: number }[];
      template?: {
        spec: {
          terminationGracePeriodSeconds?: number;
          containers: {
            args?: string[];
            ports: { containerPort: number }[];
            env?: { name: string }[];
            readinessProbe: { httpGet: { path: string } };
            livenessProbe: { httpGet: { path: string } };
          }[];
        };
      };
    };
  }
  const manifests = (name: string) =>
    parseAllDocuments(read(`kubernetes/${name}`)).map((one) => one.toJS() as Manifest);

  test('start replicas of what the program has, with settings that it reads, and ask what it answers', () => {
    const { spec } = manifests('control.yaml').find(({ kind }) => kind === 'Deployment')!;
    const { containers, terminationGracePeriodSeconds } = spec.template!.spec;
    const [container] = containers;
    expect(spec.replicas).toBeGreaterThan(1);
    expect(complaintOf(container!.args!)).toBeUndefined();
    expect(container!.ports[0]!.containerPort).toBe(defaults.port);
    expect(container!.env!.filter(({ name }) => !CONTROL_VARIABLES.has(name))).toEqual([]);
    expect(container!.readinessProbe.httpGet.path).toBe(ROUTES.readyz.path);
    expect(container!.livenessProbe.httpGet.path).toBe(ROUTES.healthz.path);
    expect(terminationGracePeriodSeconds! * 1000).toBeGreaterThan(defaults.drain_timeout_ms);
  });

  test('have the stores under the names that the guide’s secret uses', () => {
    const services = manifests('stores.yaml').flatMap(({ kind, metadata, spec }) =>
      kind === 'Service' ? [`${metadata.name}:${spec.ports![0]!.port}`] : [],
    );
    const guide = readFileSync(join(root, 'docs/guides/production.md'), 'utf8');
    expect(services).toEqual(['flotilla-database:5432', 'flotilla-bus:4222']);
    for (const service of services) expect(guide).toContain(`@${service.split(':')[0]}`);
  });
});

test('the guide says what each file is for', () => {
  const guide = readFileSync(join(root, 'docs/guides/production.md'), 'utf8');
  for (const name of [
    'Dockerfile',
    'compose.yaml',
    'kubernetes/control.yaml',
    'kubernetes/stores.yaml',
    '.env.example',
    'flotilla-control.service',
    'grafana/flotilla.json',
  ])
    expect(guide).toContain(`deploy/${name}`);
});
