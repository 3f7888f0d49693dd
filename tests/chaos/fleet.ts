import { setTimeout as pause } from 'node:timers/promises';
import { type Program } from '../support/program.ts';
import { type Proxy, startProxy } from '../support/proxy.ts';
import { type Plane, type TestNode, type World, openWorld } from '../support/world.ts';
import { scriptedAnswers, MODELS, type Pace } from './answers.ts';
import type { History } from './history.ts';
import { type Service, startNats, startPostgres } from './services.ts';

/** Replicas, nodes and their backends on a PostgreSQL and a NATS of their own, each path between them a proxy. */
export interface Fleet {
  readonly history: History;
  readonly world: World;
  readonly postgres: Service & { readonly url: string };
  readonly nats: Service;
  readonly replicas: readonly Replica[];
  readonly nodes: readonly FleetNode[];
  /** All processes of the product, stopped in order; no supervisor starts them again. */
  stop(): Promise<void>;
  close(): Promise<void>;
}

export interface Replica {
  readonly name: string;
  readonly plane: Plane;
  readonly process: Supervised;
  /** What it reaches NATS and PostgreSQL through. */
  readonly bus: Proxy;
  readonly store: Proxy;
}

interface FleetNode {
  readonly name: string;
  readonly node: TestNode;
  readonly process: Supervised;
  /** What it reaches each replica through. */
  readonly links: readonly Proxy[];
}

/**
 * A process that is started again whenever it ends, as systemd and Kubernetes do.
 *
 *     runs ──it ends──▶ ended ──not held──▶ starting ──▶ runs
 *       └──kill(), stop()──▶ held ──release()──▲          any ──retire()──▶ left alone
 */
interface Supervised {
  kill(): void;
  stop(): Promise<void>;
  /** Resolves when it runs again. */
  release(): Promise<void>;
  freeze(): void;
  thaw(): void;
  /** Resolves when nothing will start it any more. */
  retire(): Promise<void>;
}

export interface FleetOptions extends Pace {
  replicas: number;
  nodes: number;
  slots: number;
  heartbeat_ms: number;
}

/** What a supervisor waits before it starts a program again that ended at once. */
const RESTART_AFTER_MS = 300;
/** Nodes that are enrolled at the same time. */
const ENROL_AT_ONCE = 4;

export async function openFleet(history: History, options: FleetOptions): Promise<Fleet> {
  const [postgres, nats] = await Promise.all([startPostgres(), startNats()]);
  const proxies: Proxy[] = [];
  const proxy = async (port: number) => {
    const own = await startProxy({ port });
    proxies.push(own);
    return own;
  };
  const paths = await Promise.all(
    Array.from({ length: options.replicas }, async () => ({
      bus: await proxy(nats.port),
      store: await proxy(postgres.port),
    })),
  );
  const settings = ({ bus, store }: (typeof paths)[number]) => ({
    DATABASE_URL: postgres.url.replace(`:${postgres.port}/`, `:${store.port}/`),
    NATS_URL: `nats://127.0.0.1:${bus.port}`,
  });
  const world = await openWorld({
    heartbeat_ms: options.heartbeat_ms,
    database_url: postgres.url,
    env: settings(paths[0]!),
  });
  const replicas: Replica[] = [];
  for (const [place, path] of paths.entries()) {
    const name = `replica ${place + 1}`;
    const plane = place === 0 ? world.plane : await world.replica(settings(path));
    replicas.push({ name, plane, process: supervise(history, name, plane), ...path });
  }
  const answers = scriptedAnswers(history, options);
  const nodes: FleetNode[] = [];
  for (let from = 0; from < options.nodes; from += ENROL_AT_ONCE) {
    const count = Math.min(ENROL_AT_ONCE, options.nodes - from);
    nodes.push(...(await Promise.all(Array.from({ length: count }, (_, place) => addNode(from + place)))));
  }
  const supervised = [...nodes, ...replicas].map(({ process }) => process);

  return {
    history,
    world,
    postgres,
    nats,
    replicas,
    nodes,
    async stop() {
      await Promise.all(supervised.map((process) => process.retire()));
      await Promise.all(nodes.map(({ node }) => node.program().stop()));
      await Promise.all(replicas.map(({ plane }) => plane.program().stop()));
    },
    async close() {
      await Promise.all(supervised.map((process) => process.retire()));
      await world.close();
      for (const one of proxies) await one.close();
      await Promise.all([postgres.close(), nats.close()]);
    },
  };

  async function addNode(place: number): Promise<FleetNode> {
    const name = `node-${place + 1}`;
    const backend = await world.backend(answers(name), Object.values(MODELS));
    const links = await Promise.all(replicas.map(({ plane }) => proxy(plane.port)));
    // Each begins at another one.
    const turned = links.map((_, index) => links[(index + place) % links.length]!.url);
    const node = await world.node({
      name,
      backends: [{ url: backend.url, slots: options.slots }],
      env: { FLOTILLA_NODE_CONTROL_URL: turned.join(',') },
    });
    return { name, node, process: supervise(history, name, node), links };
  }
}

function supervise(
  history: History,
  who: string,
  what: { program(): Program; restart(): Promise<void> },
): Supervised {
  let held: PromiseWithResolvers<void> | null = null;
  /** Its next end is no surprise. */
  let killed = false;
  let retired = false;
  let running = Promise.withResolvers<void>();
  running.resolve();
  void watch();
  return {
    kill() {
      hold();
      what.program().signal('SIGKILL');
    },
    async stop() {
      hold();
      await what.program().stop();
    },
    async release() {
      held?.resolve();
      held = null;
      await running.promise;
    },
    freeze: () => what.program().signal('SIGSTOP'),
    thaw: () => what.program().signal('SIGCONT'),
    async retire() {
      retired = true;
      held?.resolve();
      await running.promise;
    },
  };

  function hold(): void {
    killed = true;
    held ??= Promise.withResolvers();
    running = Promise.withResolvers();
  }

  async function watch(): Promise<void> {
    for (;;) {
      const { code, stdout, stderr } = await what.program().ended;
      if (retired) return running.resolve();
      history.add({
        type: 'exited',
        who,
        killed,
        code,
        output: killed ? '' : (stdout + stderr).slice(-2000),
      });
      killed = false;
      for (;;) {
        await held?.promise;
        if (retired || (await startAgain())) break;
        await pause(RESTART_AFTER_MS);
      }
      running.resolve();
      if (retired) return;
    }
  }

  function startAgain(): Promise<boolean> {
    return what.restart().then(
      () => true,
      () => false,
    );
  }
}
