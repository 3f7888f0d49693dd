import { timings } from '@flotilla/core';
import { type NodeState, isTerminal } from '@flotilla/protocol';
import type { Call } from './backend.ts';
import type { Attached, Submitted } from './client.ts';
import * as invariants from './invariants.ts';
import type { Invariant, Verdict } from './invariants.ts';
import type { Serving } from './replica.ts';
import type { Transition } from './store/tables.ts';
import type { World } from './world.ts';

/** Looks at a world from outside, whenever something has happened in it, and tells what is broken. */
export class Judge {
  readonly #world: World;
  readonly #tell: (invariant: Invariant, sentence: string) => void;
  /** Of each job. */
  readonly #last = new Map<string, Transition>();
  /** Those that were ended in the name of a control plane that was taken for dead. */
  readonly #orphaned = new Set<string>();
  /** Transitions that have been looked at. */
  #seen = 0;
  /** Attached requests that have reached a model server. */
  readonly #asked = new Set<string>();
  /** As each control plane saw its nodes last. */
  readonly #states = new WeakMap<Serving, Map<string, NodeState>>();

  constructor(world: World, tell: (invariant: Invariant, sentence: string) => void) {
    this.#world = world;
    this.#tell = tell;
  }

  acked(job: Submitted): void {
    const { history, store } = this.#world;
    history.add('client', `${job.request_id} is acknowledged as ${[...job.jobs].join()}`);
    this.#judge('P1', invariants.committed(store.database, job));
  }

  #judge(invariant: Invariant, verdict: Verdict): void {
    if (verdict !== undefined) this.#tell(invariant, verdict);
  }

  heard(client: Attached): void {
    this.#world.history.add('client', `${client.request_id} has ${client.received.length} characters`, {
      status: client.status,
      end: client.end,
    });
    this.#judge('P2', invariants.recorded(this.#world.store.database, client));
    this.#judge('P6', invariants.ofOneAnswer(client, this.#world.calls));
  }

  committed(call: string): void {
    const { database } = this.#world.store;
    while (this.#seen < database.transitions.length) {
      const moved = database.transitions[this.#seen++]!;
      const before = this.#last.get(moved.job);
      this.#last.set(moved.job, moved);
      this.#judge('P3', invariants.endsOnce(before, moved, this.#orphaned.delete(moved.job)));
      if (call === 'endOrphans') this.#orphaned.add(moved.job);
      if (moved.attached) continue;
      if (moved.to === 'succeeded')
        this.#judge('P3', invariants.ofItsAttempt(database, moved, this.#world.calls));
      if (moved.to === 'leased' && moved.node !== null && moved.attempt !== before?.attempt) {
        const { request_id } = database.job(moved.job)!;
        const others = this.#atWorkOn(request_id).filter(({ node }) => node !== moved.node);
        this.#judge('P4', invariants.alone(moved.job, moved.node, others));
      }
    }
  }

  began(call: Call): void {
    this.#world.calls.push(call);
    const { name, options } = this.#world.machines().find((node) => node.name === call.machine)!;
    this.#judge('slots', invariants.withinSlots(name, options.slots, options.backend.open));
    if (!call.request_id.startsWith('detached')) return this.#letIn(call);
    const others = this.#atWorkOn(call.request_id).filter(({ machine }) => machine !== call.machine);
    this.#judge('P4', invariants.alone(call.request_id, call.machine, others));
  }

  #letIn({ request_id }: Call): void {
    const { attached, calls, limits, scheduler, store } = this.#world;
    this.#asked.add(request_id);
    const at_work = new Set(calls.flatMap((call) => (call.ended_ms === null ? [call.request_id] : [])));
    const open = attached.filter(
      (client) =>
        client.end === null &&
        at_work.has(client.request_id) &&
        store.database.tables.replicas.has(client.at!),
    );
    this.#judge('limits', invariants.withinLimits(limits, this.#asked, scheduler.now_ms, open));
  }

  /** By nodes that can know when their time is over: one that stands still finds out when it goes on. */
  #atWorkOn(request_id: string): Call[] {
    const { now_ms } = this.#world.scheduler;
    const t = timings(this.#world.heartbeat_ms);
    const notices_ms = t.heartbeat_ms + t.jitter_ms + 10;
    return this.#world.calls.filter(
      (call) =>
        call.ended_ms === null &&
        call.request_id === request_id &&
        call.process.running &&
        now_ms - call.process.stood_until_ms > notices_ms,
    );
  }

  /** After each event. */
  look(): void {
    const { lease_ttl_ms } = timings(this.#world.heartbeat_ms);
    for (const { serving } of this.#world.replicas) {
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

  /** What has not ended. */
  left(): string[] {
    const { nodes, store } = this.#world;
    const { database } = store;
    const left: string[] = [];
    for (const client of this.#world.attached) {
      if (client.end === null) left.push(`${client.request_id} has no end`);
    }
    for (const job of this.#world.submitted) {
      if (job.jobs.size === 0 && !job.given_up) left.push(`${job.request_id} is not acknowledged`);
      else this.#judge('P1', invariants.committed(database, job));
    }
    for (const row of database.jobs()) {
      // It waits for a day, and a world is over before.
      if (
        row.on_node_loss === 'wait_for_origin' &&
        nodes.some(({ over, options }) => over && options.id === row.node)
      )
        continue;
      if (!isTerminal(row.state)) left.push(`${row.id} (${row.request_id}) is ${row.state}`);
      else if (!row.attached && database.usageOf(row.id) === undefined)
        left.push(`${row.id} has no usage row`);
    }
    for (const { link, name, options, process, over } of nodes) {
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
    for (const { serving, address } of this.#world.replicas) {
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
