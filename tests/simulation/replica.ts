import { makeId } from '@flotilla/protocol';
import type { Store } from '@flotilla/core';
import { createKeys, type Keys } from '../../packages/control/src/accounts/keys.ts';
import { sharedOver } from '../../packages/control/src/bus/shared.ts';
import { type ControlConfig, readControlConfig } from '../../packages/control/src/config.ts';
import type { LinkSocket } from '../../packages/control/src/fleet/link.ts';
import { openRecords, type Records } from '../../packages/control/src/records.ts';
import { joinReplicas } from '../../packages/control/src/replica.ts';
import { assembleServing } from '../../packages/control/src/serving.ts';
import type { Metrics } from '../../packages/control/src/telemetry/metrics.ts';
import { NO_TRACES } from '../../packages/control/src/telemetry/traces.ts';
import type { BusServer } from './bus.ts';
import type { Chance } from './chance.ts';
import { type Machine, Process } from './machine.ts';
import type { Network } from './network.ts';
import type { StoreServer } from './store-server.ts';

/** A control plane at an address, started again whenever it has died: all of it that opens no port is the real one. */
export interface ReplicaOptions {
  machine: Machine;
  chance: Chance;
  network: Network;
  bus: BusServer;
  store: StoreServer;
  address: string;
  heartbeat_ms: number;
  /** What it is given of the store, for a bug that is planted there. */
  storeOf: (store: Store) => Store;
  /** It serves from now on. */
  served: (serving: Serving) => void;
}

export interface Serving extends Awaited<ReturnType<typeof assembleServing>> {
  readonly process: Process;
  /** Its name among the replicas. */
  readonly id: string;
  readonly keys: Keys;
  readonly records: Records;
  readonly config: ControlConfig;
  /** When it has heard of each node on a link that it let in, by its clock. */
  readonly heard: Map<string, number>;
}

const RESTART_MS = 1000;
const FLUSH_WITHIN_MS = 5000;
const configs = new Map<number, ControlConfig>();

export class SimReplica {
  readonly options: ReplicaOptions;
  /** What takes clients and nodes now. */
  serving: Serving | null = null;
  process: Process | null = null;
  #starts = 0;
  #undo: (() => Promise<unknown>)[] = [];
  #stopping = false;

  constructor(options: ReplicaOptions) {
    this.options = options;
  }

  get address(): string {
    return this.options.address;
  }

  start(): void {
    if (this.process !== null) return;
    const { machine, chance, address } = this.options;
    const process = new Process(`${address}#${++this.#starts}`, machine, chance.fork());
    this.process = process;
    this.#undo = [];
    this.#stopping = false;
    process.onDeath(() => {
      this.process = null;
      this.serving = null;
    });
    process.arrives(0, () => {
      this.#open(process).catch((error: unknown) => {
        // A start that cannot reach its store ends, and is tried again.
        process.log.error({ error }, 'It could not start.');
        this.crash();
      });
    });
  }

  /** Its process ends as by `kill -9`, and is started again. */
  crash(restart_ms = RESTART_MS): void {
    this.process?.die();
    this.options.machine.nature.scheduler.after(restart_ms, () => this.start());
  }

  /** Stops in good order, as for an upgrade, and is started again. */
  stop(restart_ms = RESTART_MS): void {
    const { process } = this;
    if (process === null) return;
    process.arrives(0, () => {
      if (this.#stopping) return;
      this.#stopping = true;
      this.serving = null;
      this.options.network.deaf(this.address);
      process.log.info({}, 'stops in good order');
      void this.#close().then(() => {
        process.die();
        this.options.machine.nature.scheduler.after(restart_ms, () => this.start());
      });
    });
  }

  async #close(): Promise<void> {
    for (const step of this.#undo.splice(0).reverse()) await step().catch(() => undefined);
  }

  /** As `main.ts` puts it together. */
  async #open(process: Process): Promise<void> {
    const { network, bus: server, address, heartbeat_ms } = this.options;
    const { clock, log, chance: random } = process;
    const config = configFor(heartbeat_ms);
    const undo = this.#undo;
    const id = makeId('replica', clock.wall_ms(), random.bytes(10));
    const own = this.options.store.connect(process, address);
    const store = withPolicies(this.options.storeOf(own));
    let storeFailed = () => {};
    let renewed = () => {};
    const early: string[] = [];
    let died = (other: string): void => void early.push(other);
    const membership = await joinReplicas({
      store,
      clock,
      log,
      id,
      bus: true,
      heartbeat_ms,
      waits: () => undefined,
      failed: () => storeFailed(),
      renewed: () => renewed(),
      buried: () => this.stop(),
      died: (other) => died(other),
    });
    undo.push(() => membership.leave());
    const bus = server.connect(id, process);
    undo.push(() => bus.close());
    const keys = createKeys({ store, clock, log });
    undo.push(() => keys.close());
    const records = openRecords({ store, metrics: NO_METRICS, log, clock });
    const flushBy = () => clock.now_ms() + FLUSH_WITHIN_MS;
    undo.push(() => records.close(flushBy()));
    storeFailed = () => records.settlements.suspect();
    const serving = await assembleServing(
      {
        config,
        log,
        membership,
        random,
        clock,
        background: clock,
        store,
        replica: id,
        shared: sharedOver(bus, membership, clock, log),
        metrics: NO_METRICS,
        traces: NO_TRACES,
        keys,
        records,
        sealer: null,
        known: () => undefined,
        flushBy,
      },
      undo,
    );
    died = (other) => serving.died(other);
    renewed = () => serving.fleet.renewed();
    for (const other of early) died(other);
    undo.push(() => serving.fleet.close());
    undo.push(() => serving.gateway.drain(config.drain_timeout_ms));
    const heard = new Map<string, number>();
    this.serving = { ...serving, process, id, keys, records, config, heard };
    this.options.served(this.serving);
    network.listen(address, {
      process,
      accept(credential) {
        const peer = serving.fleet.peer(credential);
        return {
          join: (socket) =>
            void serving.fleet.join(peer, socket as unknown as LinkSocket, {
              text: (text) => socket.send(text),
              binary: (header, payload) => socket.send(Buffer.concat([header, payload])),
              flush: () => undefined,
            }),
          heard: (now_ms) => void heard.set(peer.node.id, now_ms),
        };
      },
    });
    log.info({ id }, 'serves');
  }
}

/** The policy that a job's client wishes; the program knows them all and offers one. */
function withPolicies(store: Store): Store {
  return {
    ...store,
    acceptJobs: (batch) =>
      store.acceptJobs(
        batch.map((job) => ({
          ...job,
          on_node_loss:
            (job.metadata['on_node_loss'] as typeof job.on_node_loss | undefined) ?? job.on_node_loss,
        })),
      ),
  };
}

function configFor(heartbeat_ms: number): ControlConfig {
  const known = configs.get(heartbeat_ms);
  if (known !== undefined) return known;
  const config = readControlConfig({
    DATABASE_URL: 'postgres://simulation',
    NATS_URL: 'nats://simulation',
    FLOTILLA_DATA_DIR: 'nowhere',
    FLOTILLA_HEARTBEAT_MS: String(heartbeat_ms),
    FLOTILLA_QUEUE_TIMEOUT_MS: '20000',
    FLOTILLA_RUN_TIMEOUT_MS: '20000',
    FLOTILLA_FIRST_BYTE_TIMEOUT_MS: '6000',
    FLOTILLA_IDLE_TIMEOUT_MS: '3000',
    FLOTILLA_DRAIN_TIMEOUT_MS: '3000',
  });
  configs.set(heartbeat_ms, config);
  return config;
}

const nothing = () => undefined;
const NO_METRICS: Metrics = {
  requestStarted: nothing,
  requestEnded: nothing,
  requestRefused: nothing,
  queueWaited: nothing,
  attemptEnded: nothing,
  detachedAccepted: nothing,
  detachedEnded: nothing,
  beatReceived: nothing,
  countsDiffered: nothing,
  authFailed: nothing,
  storeFlushed: nothing,
  watch: nothing,
  render: async () => '',
  content_type: 'text/plain',
};
