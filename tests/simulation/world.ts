import { isTerminal, makeId } from '@flotilla/protocol';
import type { Store } from '@flotilla/core';
import { hashCredential, makeCredential } from '../../packages/control/src/accounts/credential.ts';
import type { Machine as LinkMachine } from '../../packages/daemon/src/link/machine.ts';
import { Backend, type Call } from './backend.ts';
import { BusServer, CALM } from './bus.ts';
import { Chance } from './chance.ts';
import type { Attached, Submitted } from './client.ts';
import { FAULTS } from './faults.ts';
import { History } from './history.ts';
import type { Invariant, KeyLimits, Violation } from './invariants.ts';
import { Judge } from './judge.ts';
import { Machine, type Nature } from './machine.ts';
import { Network } from './network.ts';
import { type NodeOptions, SimNode } from './node.ts';
import { type Serving, SimReplica } from './replica.ts';
import { Scheduler } from './scheduler.ts';
import { SOUND, StoreServer } from './store-server.ts';
import { planWork } from './work.ts';
import type { Database } from './store/database.ts';

/**
 * One world from one seed: its size, its work, what goes wrong in it and when.
 *
 *     made ──run()──▶ troubled ──HEALED_MS──▶ healed ──all has ended──▶ over
 *                        └───────────────────────┴── an invariant is broken, or nothing ends ──▶ over, with a violation
 */
export interface WorldOptions {
  seed: number;
  /** Whether what happens is written down. */
  history?: boolean;
  /** A bug, put in where the world lets one in. */
  bug?: Bug;
  /** What goes wrong, where that is not for chance to say. */
  trouble?: ((world: World) => void) | undefined;
}

export interface Bug {
  /** What control planes have of the store. */
  storeOf?(store: Store, database: Database): Store;
  /** What daemons have of their machines. */
  machineOf?(machine: LinkMachine): LinkMachine;
  /** A control plane serves from now on. */
  served?(serving: Serving): void;
  /** Whether a control plane does not get this message of a node. */
  swallows?(text: string): boolean;
}

export interface Outcome {
  seed: number;
  violation: (Violation & { at_ms: number }) | null;
  history: string[];
  events: number;
  virtual_ms: number;
  jobs: { succeeded: number; ended: number };
}

const TROUBLE_FROM_MS = 300;
const TROUBLE_UNTIL_MS = 10_000;
const HEALED_MS = 14_000;
/** By then everything has to have ended. */
const OVER_MS = 240_000;
const LOOK_EVERY_MS = 200;

export class World {
  readonly seed: number;
  readonly chance: Chance;
  readonly scheduler = new Scheduler();
  readonly history: History;
  readonly nature: Nature;
  readonly network: Network;
  readonly bus: BusServer;
  readonly store: StoreServer;
  readonly replicas: SimReplica[] = [];
  readonly nodes: SimNode[] = [];
  /** Of nodes, each with the credential of one: as where a state directory was copied. */
  readonly twins: SimNode[] = [];
  readonly calls: Call[] = [];
  readonly attached: Attached[] = [];
  readonly submitted: Submitted[] = [];
  readonly heartbeat_ms: number;
  /** Of the key of all clients. */
  readonly limits: KeyLimits;
  violation: Outcome['violation'] = null;
  readonly #bug: Bug;
  readonly #trouble: WorldOptions['trouble'];
  readonly #plan: Chance;
  readonly #judge: Judge;
  /** How slow its backends are, and how often a call goes wrong in them. */
  readonly #pace: number;
  readonly #flakiness: number;
  #healed = false;
  #over = false;

  constructor({ seed, history = false, bug = {}, trouble }: WorldOptions) {
    this.seed = seed;
    this.#bug = bug;
    this.#trouble = trouble;
    const chance = new Chance(seed);
    this.chance = chance;
    this.#plan = chance.fork();
    const { scheduler } = this;
    this.history = new History(() => scheduler.now_ms, history);
    this.nature = {
      scheduler,
      history: this.history,
      broke: (who, error) => this.#broken('sound', `${who}: ${describe(error)}`),
    };
    this.heartbeat_ms = this.#plan.pick([1000, 1000, 1000, 2000, 5000]);
    this.limits = {
      requests_per_minute: this.#plan.happens(0.15) ? this.#plan.whole(2, 8) : null,
      concurrency: this.#plan.happens(0.2) ? this.#plan.whole(1, 3) : null,
    };
    this.#pace = this.#plan.pick([1, 1, 3, 8]);
    this.#flakiness = this.#plan.pick([0, 0, 0.1, 0.4]);
    this.network = new Network(this.nature, chance.fork());
    this.network.swallows = (text) => bug.swallows?.(text) ?? false;
    this.bus = new BusServer(this.nature, chance.fork());
    this.store = new StoreServer(() => 1_893_456_000_000 + scheduler.now_ms, chance.fork());
    this.#judge = new Judge(this, (invariant, sentence) => this.#broken(invariant, sentence));
    this.store.committed = (call) => this.#judge.committed(call);
  }

  async run(): Promise<Outcome> {
    const unheard = (error: unknown) => this.#broken('sound', `a promise of nobody: ${describe(error)}`);
    process.on('unhandledRejection', unheard);
    try {
      await this.#make();
      while (!this.#over && this.violation === null) {
        if (!(await this.scheduler.step())) break;
        this.#judge.look();
      }
      // What was rejected last is told by then.
      await new Promise((told) => setImmediate(told));
    } finally {
      process.off('unhandledRejection', unheard);
    }
    const rows = [...this.store.database.jobs()];
    return {
      seed: this.seed,
      violation: this.violation,
      history: this.history.lines,
      events: this.scheduler.events,
      virtual_ms: this.scheduler.now_ms,
      jobs: {
        succeeded: rows.filter(({ state }) => state === 'succeeded').length,
        ended: rows.filter(({ state }) => isTerminal(state)).length,
      },
    };
  }

  // ── What there is ──

  async #make(): Promise<void> {
    const plan = this.#plan;
    const store = this.store.atOnce();
    const key = makeCredential('apiKey', this.chance);
    await store.insertKey({
      id: makeId('key', 0, this.chance.bytes(10)),
      name: 'client',
      hash: hashCredential(key),
      role: null,
      scopes: ['inference', 'jobs'],
      allowed_models: [],
      node_labels: {},
      ...this.limits,
      tokens_per_minute: null,
      token_budget: null,
      created_at: 0,
      expires_at: null,
      last_used_at: null,
      revoked_at: null,
    });
    const addresses = Array.from({ length: plan.whole(2, 3) }, (_, at) => `control-${at + 1}`);
    for (const address of addresses) this.#addReplica(address);
    const nodes = plan.whole(1, 4);
    for (let at = 1; at <= nodes; at++) await this.#addNode(`node-${at}`, addresses);
    planWork(this, plan, key, this.#judge);
    if (this.#trouble === undefined) this.#planTrouble();
    else this.#trouble(this);
    this.scheduler.at(HEALED_MS, () => this.#heal());
    this.#watchEnd();
  }

  #addReplica(address: string): void {
    const { network, bus, store, heartbeat_ms } = this;
    const bug = this.#bug;
    const chance = this.chance.fork();
    const machine = new Machine(address, this.nature, chance);
    const replica = new SimReplica({
      machine,
      chance,
      network,
      bus,
      store,
      address,
      heartbeat_ms,
      storeOf: (own) => bug.storeOf?.(own, store.database) ?? own,
      served: (serving) => bug.served?.(serving),
    });
    this.replicas.push(replica);
    this.scheduler.at(chance.between(0, 100), () => replica.start());
  }

  async #addNode(name: string, addresses: readonly string[]): Promise<void> {
    const chance = this.chance.fork();
    const credential = makeCredential('node', chance);
    const id = makeId('node', 0, chance.bytes(10));
    await this.#enrol(id, name, credential);
    const slots = this.#plan.whole(1, 3);
    const node = this.#machineOf(
      name,
      { id, credential, slots, addresses: shuffled(addresses, chance) },
      chance,
    );
    this.nodes.push(node);
    this.scheduler.at(chance.between(0, 400), () => node.start());
  }

  /** Another machine with the credential of this node, until all heals. */
  addTwin({ name, options: { id, credential, slots, addresses } }: SimNode, chance: Chance): void {
    const twin = this.#machineOf(`${name}-twin`, { id, credential, slots, addresses }, chance);
    this.twins.push(twin);
    twin.start();
  }

  /** Nodes and their twins. */
  machines(): SimNode[] {
    return [...this.nodes, ...this.twins];
  }

  #machineOf(
    name: string,
    of: Pick<NodeOptions, 'id' | 'credential' | 'slots' | 'addresses'>,
    chance: Chance,
  ): SimNode {
    const machine = new Machine(name, this.nature, chance);
    const backend = new Backend({
      machine,
      chance: chance.fork(),
      node: of.id,
      nextId: () => this.calls.length + 1,
      began: (call) => this.#judge.began(call),
      pace: this.#pace,
      flakiness: () => (this.#healed ? 0 : this.#flakiness),
    });
    return new SimNode({
      ...of,
      machine,
      chance,
      network: this.network,
      backend,
      name,
      machineOf: (own) => this.#bug.machineOf?.(own) ?? own,
    });
  }

  async #enrol(node: string, name: string, credential: string): Promise<void> {
    const store = this.store.atOnce();
    const token_hash = hashCredential(name);
    const labels = {};
    await store.insertToken({
      id: makeId('enrolmentToken', 0, this.chance.bytes(10)),
      hash: token_hash,
      labels,
      allowed_models: [],
      max_uses: 1,
      uses: 0,
      created_at: 0,
      expires_at: Number.MAX_SAFE_INTEGER,
    });
    const hash = hashCredential(credential);
    const id = makeId('credential', 0, this.chance.bytes(10));
    await store.enrolNode({
      token_hash,
      node,
      name,
      labels,
      credential: { id, hash, created_at: 0, expires_at: null },
      now: 0,
    });
  }

  // ── What goes on in it ──

  /** Asks a control plane for something; what it refuses, or cannot do now, is not asked again. */
  asOperator(ask: (serving: Serving) => Promise<unknown>): void {
    const serving = this.anywhere();
    serving?.process.arrives(this.scheduler.now_ms, () => void ask(serving).catch(() => undefined));
  }

  #planTrouble(): void {
    const plan = this.#plan;
    const names = Object.keys(FAULTS);
    const count = plan.whole(1, 6);
    for (let at = 0; at < count; at++) {
      const name = plan.pick(names);
      const at_ms = plan.between(TROUBLE_FROM_MS, TROUBLE_UNTIL_MS);
      const for_ms = plan.between(50, plan.pick([500, 3000, 9000]));
      const chance = plan.fork();
      this.scheduler.at(at_ms, () => {
        if (this.#healed) return;
        this.history.add('fault', `${name}, for ${for_ms.toFixed(0)} ms`);
        FAULTS[name]!(this, chance, for_ms);
      });
    }
  }

  #heal(): void {
    this.#healed = true;
    this.history.add('fault', 'all heals');
    this.bus.weather = CALM;
    this.bus.back(null);
    this.store.trouble = SOUND;
    this.store.away_until_ms = 0;
    this.store.fatal.clear();
    for (const twin of this.twins) twin.end();
    for (const node of this.nodes) {
      // An operator takes back what was wished of it.
      void this.store.atOnce().updateNode(node.options.id, { cordoned: false, drain_deadline_at: null });
      node.options.backend.mood = 'well';
      for (const { address } of this.replicas) {
        Object.assign(this.network.line(node.name, address), { stalled_until_ms: 0, slow_ms: 0 });
      }
      node.start();
    }
    for (const replica of this.replicas) replica.start();
  }

  /** A control plane that takes clients. */
  anywhere(): Serving | undefined {
    const there = this.replicas.flatMap(({ serving }) =>
      serving?.process.running === true ? [serving] : [],
    );
    return there.length === 0 ? undefined : this.chance.pick(there);
  }

  #broken(invariant: Invariant, sentence: string): void {
    this.history.add('VIOLATION', `${invariant}: ${sentence}`);
    this.violation ??= { invariant, sentence, at_ms: this.scheduler.now_ms };
  }

  #watchEnd(): void {
    this.scheduler.after(LOOK_EVERY_MS, () => {
      const { now_ms } = this.scheduler;
      const left = this.#healed ? this.#judge.left() : ['trouble'];
      if (left.length === 0) this.#over = true;
      else if (now_ms > OVER_MS)
        this.#broken('ends', `After ${Math.round(now_ms / 1000)} s: ${left.join('; ')}.`);
      else this.#watchEnd();
    });
  }
}

function describe(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

function shuffled<T>(list: readonly T[], chance: Chance): T[] {
  return list
    .map((one) => ({ one, at: chance.next() }))
    .sort((a, b) => a.at - b.at)
    .map(({ one }) => one);
}
