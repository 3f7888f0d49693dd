import { type NodeState, isTerminal, makeId } from '@flotilla/protocol';
import { type Store, timings } from '@flotilla/core';
import { hashCredential, makeCredential } from '../../packages/control/src/accounts/credential.ts';
import type { Machine as LinkMachine } from '../../packages/daemon/src/link/machine.ts';
import { Backend, type Call } from './backend.ts';
import { BusServer, CALM } from './bus.ts';
import { Chance } from './chance.ts';
import { type Attached, type ClientDeps, type Submitted, attachedClient, detachedClient } from './client.ts';
import { FAULTS } from './faults.ts';
import { History } from './history.ts';
import * as invariants from './invariants.ts';
import type { Invariant, Verdict, Violation } from './invariants.ts';
import { Machine, type Nature } from './machine.ts';
import { Network } from './network.ts';
import { type NodeOptions, SimNode } from './node.ts';
import { type Serving, SimReplica } from './replica.ts';
import { Scheduler } from './scheduler.ts';
import { SOUND, StoreServer } from './store-server.ts';
import type { Database } from './store/database.ts';
import type { Transition } from './store/tables.ts';

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
  trouble?: (world: World) => void;
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

const WORK_UNTIL_MS = 9_000;
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
  violation: Outcome['violation'] = null;
  readonly #bug: Bug;
  readonly #trouble: WorldOptions['trouble'];
  readonly #plan: Chance;
  readonly #last = new Map<string, Transition>();
  readonly #orphaned = new Set<string>();
  /** Transitions that have been looked at. */
  #seen = 0;
  /** As each control plane saw its nodes last. */
  readonly #states = new WeakMap<Serving, Map<string, NodeState>>();
  /** How slow its backends are, and how often a call goes wrong in them. */
  readonly #pace: number;
  readonly #flakiness: number;
  #healed = false;
  #over = false;
  #names = 0;

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
    this.#pace = this.#plan.pick([1, 1, 3, 8]);
    this.#flakiness = this.#plan.pick([0, 0, 0.1, 0.4]);
    this.network = new Network(this.nature, chance.fork());
    this.network.swallows = (text) => bug.swallows?.(text) ?? false;
    this.bus = new BusServer(this.nature, chance.fork());
    this.store = new StoreServer(() => 1_893_456_000_000 + scheduler.now_ms, chance.fork());
    this.store.committed = (call) => this.#committed(call);
  }

  async run(): Promise<Outcome> {
    const unheard = (error: unknown) => this.#broken('sound', `a promise of nobody: ${describe(error)}`);
    process.on('unhandledRejection', unheard);
    try {
      await this.#make();
      while (!this.#over && this.violation === null) {
        if (!(await this.scheduler.step())) break;
        this.#look();
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
      requests_per_minute: null,
      concurrency: null,
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
    this.#planWork(key);
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

  #machines(): SimNode[] {
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
      began: (call) => this.#began(call),
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

  // ── What is to be done in it ──

  #planWork(credential: string): void {
    const plan = this.#plan;
    const { scheduler } = this;
    const deps: ClientDeps = {
      scheduler,
      chance: this.chance.fork(),
      credential,
      anywhere: () => this.anywhere(),
      heard: (client) => this.#heard(client),
      acked: (job) => {
        this.history.add('client', `${job.request_id} is acknowledged as ${[...job.jobs].join()}`);
        this.#judge('P1', invariants.committed(this.store.database, job));
      },
    };
    const jobs = plan.whole(5, 14);
    for (let at = 0; at < jobs; at++) {
      const at_ms = plan.between(TROUBLE_FROM_MS, WORK_UNTIL_MS);
      const detached = plan.happens(0.5);
      const words = plan.whole(1, 24);
      const name = `${detached ? 'detached' : 'attached'}-${++this.#names}`;
      if (detached) {
        const asked = {
          request_id: name,
          words,
          on_node_loss: plan.happens(0.7) ? 'requeue' : plan.pick(['fail', 'wait_for_origin']),
          queue_timeout_ms: plan.happens(0.15) ? plan.whole(500, 5000) : 60_000,
          run_timeout_ms: plan.happens(0.15) ? plan.whole(300, 3000) : 20_000,
          tries: plan.whole(1, 40),
          repeats: plan.happens(0.2),
        };
        const cancelled_ms = plan.happens(0.25) ? at_ms + plan.between(0, 6000) : null;
        scheduler.at(at_ms, () => {
          const job = detachedClient(deps, asked);
          this.submitted.push(job);
          if (cancelled_ms !== null) scheduler.at(cancelled_ms, () => this.#cancel(job));
        });
      } else {
        const asked = {
          request_id: name,
          stream: plan.happens(0.7),
          wants_usage: plan.happens(0.3),
          words,
          leaves_after_ms: plan.happens(0.15) ? plan.between(0, 4000) : null,
        };
        scheduler.at(at_ms, () => this.attached.push(attachedClient(deps, asked)));
      }
    }
  }

  #cancel({ jobs: [job] }: Submitted): void {
    if (job !== undefined)
      this.asOperator(({ detached }) => detached.cancel(job, 'It is not needed any more.'));
  }

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

  // ── What holds in it ──

  #judge(invariant: Invariant, verdict: Verdict): void {
    if (verdict !== undefined) this.#broken(invariant, verdict);
  }

  #broken(invariant: Invariant, sentence: string): void {
    this.history.add('VIOLATION', `${invariant}: ${sentence}`);
    this.violation ??= { invariant, sentence, at_ms: this.scheduler.now_ms };
  }

  #heard(client: Attached): void {
    this.history.add('client', `${client.request_id} has ${client.received.length} characters`, {
      status: client.status,
      end: client.end,
    });
    this.#judge('P2', invariants.recorded(this.store.database, client));
    this.#judge('P6', invariants.ofOneAnswer(client, this.calls));
  }

  #committed(call: string): void {
    const { database } = this.store;
    while (this.#seen < database.transitions.length) {
      const moved = database.transitions[this.#seen++]!;
      const before = this.#last.get(moved.job);
      this.#last.set(moved.job, moved);
      this.#judge('P3', invariants.endsOnce(before, moved, this.#orphaned.delete(moved.job)));
      if (call === 'endOrphans') this.#orphaned.add(moved.job);
      if (moved.attached) continue;
      if (moved.to === 'succeeded') this.#judge('P3', invariants.ofItsAttempt(database, moved, this.calls));
      if (moved.to === 'leased' && moved.node !== null && moved.attempt !== before?.attempt) {
        const { request_id } = database.job(moved.job)!;
        const others = this.#atWorkOn(request_id).filter(({ node }) => node !== moved.node);
        this.#judge('P4', invariants.alone(moved.job, moved.node, others));
      }
    }
  }

  #began(call: Call): void {
    this.calls.push(call);
    const { name, options } = this.#machines().find((node) => node.name === call.machine)!;
    this.#judge('slots', invariants.withinSlots(name, options.slots, options.backend.open));
    if (!call.request_id.startsWith('detached')) return;
    const others = this.#atWorkOn(call.request_id).filter(({ machine }) => machine !== call.machine);
    this.#judge('P4', invariants.alone(call.request_id, call.machine, others));
  }

  /** By nodes that can know when their time is over: one that stands still finds out when it goes on. */
  #atWorkOn(request_id: string): Call[] {
    const { now_ms } = this.scheduler;
    const t = timings(this.heartbeat_ms);
    const notices_ms = t.heartbeat_ms + t.jitter_ms + 10;
    return this.calls.filter(
      (call) =>
        call.ended_ms === null &&
        call.request_id === request_id &&
        call.process.running &&
        now_ms - call.process.stood_until_ms > notices_ms,
    );
  }

  /** After each event. */
  #look(): void {
    const { lease_ttl_ms } = timings(this.heartbeat_ms);
    for (const { serving } of this.replicas) {
      if (serving === null) continue;
      this.#judge('slots', invariants.slotsHeld(serving));
      let states = this.#states.get(serving);
      if (states === undefined) this.#states.set(serving, (states = new Map()));
      for (const node of serving.roster.all()) {
        const { id, state } = node;
        if (states.get(id) === state) continue;
        states.set(id, state);
        if (state !== 'offline' || node.replica !== null) continue;
        const heard_ms = serving.heard.get(id);
        if (heard_ms === undefined || node.liveness.reason.startsWith('it said goodbye')) continue;
        const silent_ms = serving.process.clock.now_ms() - heard_ms;
        this.#judge('liveness', invariants.leaseOver(node.record.name, silent_ms, lease_ttl_ms));
      }
    }
  }

  #watchEnd(): void {
    this.scheduler.after(LOOK_EVERY_MS, () => {
      const { now_ms } = this.scheduler;
      const left = this.#healed ? this.#left() : ['trouble'];
      if (left.length === 0) this.#over = true;
      else if (now_ms > OVER_MS)
        this.#broken('ends', `After ${Math.round(now_ms / 1000)} s: ${left.join('; ')}.`);
      else this.#watchEnd();
    });
  }

  /** What has not ended. */
  #left(): string[] {
    const { database } = this.store;
    const left: string[] = [];
    for (const client of this.attached) {
      if (client.end === null) left.push(`${client.request_id} has no end`);
    }
    for (const job of this.submitted) {
      if (job.jobs.size === 0 && !job.given_up) left.push(`${job.request_id} is not acknowledged`);
      else this.#judge('P1', invariants.committed(database, job));
    }
    for (const row of database.jobs()) {
      if (!isTerminal(row.state)) left.push(`${row.id} (${row.request_id}) is ${row.state}`);
      else if (!row.attached && database.usageOf(row.id) === undefined)
        left.push(`${row.id} has no usage row`);
    }
    for (const { link, name, options, process, over } of this.nodes) {
      if (over) continue;
      if (process !== null && !process.running) left.push(`${name} stands still`);
      else if (link === null) left.push(`${name} does not run`);
      else if (link.attempts.size > 0)
        left.push(
          `${name} holds ${link.attempts
            .inventory()
            .map(({ job }) => job)
            .join()}`,
        );
      if (options.backend.open.size > 0) left.push(`the backend of ${name} is at work`);
    }
    for (const { serving, address } of this.replicas) {
      if (serving?.process.running !== true) left.push(`${address} does not serve`);
      else left.push(...heldBy(serving).map((held) => `${address}: ${held}`));
    }
    return left;
  }
}

function heldBy({ roster }: Serving): string[] {
  const held: string[] = [];
  for (const { ledger, record, state, attempts } of roster.all()) {
    if (state !== 'online' && state !== 'revoked') held.push(`${record.name} is ${state}`);
    for (const pool of ledger.pools.values()) {
      if (pool.reserved > 0) held.push(`${record.name} has ${pool.reserved} slots reserved`);
    }
    if (attempts.size > 0) held.push(`${record.name} has attempts ${[...attempts.keys()].join()}`);
  }
  return held;
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
