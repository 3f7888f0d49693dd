import type { AttemptRecord, Store, UsageRecord } from '@flotilla/core';
import { readDescriptor } from '@flotilla/protocol';
import { acceptJobs, findReplayed } from './accept-jobs.ts';
import * as accounts from './accounts.ts';
import * as attached from './attached.ts';
import * as bodies from './bodies.ts';
import { claimJobs } from './claim-jobs.ts';
import * as discoveries from './discoveries.ts';
import { drawLimits } from './draw-limits.ts';
import { cancelJob, expireJobs } from './end-jobs.ts';
import { findDetached, heldJobs, heldNodes, keepJobs } from './held-jobs.ts';
import { jobMarks } from './job-marks.ts';
import * as listings from './listings.ts';
import { finishJobs, requeueJobs, startJobs } from './move-jobs.ts';
import * as nodes from './nodes.ts';
import { nextDue, readyJobs, readyLanes } from './ready-jobs.ts';
import * as replicas from './replicas.ts';
import { asSent, refuseFractions } from './sent.ts';
import { sweep } from './sweep.ts';
import { createTables, type JobRow, type NodeRow, type Tables, type Transition } from './tables.ts';
import { correctUsage, findUsage, loadReservations } from './usage.ts';

/**
 * How one process reaches the store. `commit` does the whole call at once: when it runs, whether its answer arrives, and
 * whether it runs at all is for whoever simulates to say, with the errors of `failure.ts`. What `commit` throws is a refused
 * row, and is the caller's to hear; then nothing is committed.
 */
export type Reach = <Answer>(call: StoreCall, commit: () => Answer) => Promise<Answer>;

/**
 * The store of a simulation: what the SQL of `packages/control/src/store` does, in memory. It outlives the processes that
 * are connected to it. Every answer is the caller's own; a call is one moment, also where the real one is several
 * statements.
 */
export interface Database {
  connect(reach: Reach): Store;
  /** What is committed, for invariants: rows stay as they were when they are replaced. */
  jobs(): Iterable<JobRow>;
  job(id: string): JobRow | undefined;
  attemptsOf(job: string): Readonly<AttemptRecord>[];
  usageOf(job: string): Readonly<UsageRecord> | undefined;
  nodes(): Iterable<NodeRow>;
  /** Each change of a job's state or fence, in the order of their commits: a job that ended twice has two ends in it. */
  readonly transitions: readonly Transition[];
  readonly tables: Tables;
}

/** @param now_ms the store's own clock */
export function createDatabase({ now_ms }: { now_ms: () => number }): Database {
  const tables = createTables(now_ms);
  return {
    connect: (reach) => connect(tables, reach),
    jobs: () => tables.jobs.all(),
    job: (id) => tables.jobs.get(id),
    attemptsOf: (job) => [...(tables.attempts.get(job)?.values() ?? [])],
    usageOf: (job) => tables.usage.get(job),
    nodes: () => tables.nodes.values(),
    transitions: tables.jobs.transitions,
    tables,
  };
}

/** One part of the port after the other; what is not here no simulation has asked for. */
const OPERATIONS = {
  ping: () => undefined,
  close: () => undefined,
  configVersion: (tables: Tables) => tables.version,
  installation: () => 'simulation',

  loadKeys: accounts.loadKeys,
  insertKey: accounts.insertKey,
  updateKey: accounts.updateKey,
  revokeKey: accounts.revokeKey,
  touchKeys: accounts.touchKeys,
  insertToken: accounts.insertToken,
  listTokens: accounts.listTokens,
  deleteToken: accounts.deleteToken,
  enrolNode: accounts.enrolNode,

  takeEpochs: nodes.takeEpochs,
  updateNode: nodes.updateNode,
  rotateCredential: nodes.rotateCredential,
  revokeNode: nodes.revokeNode,
  deleteNode: nodes.deleteNode,
  saveDescriptors: nodes.saveDescriptors,
  saveNodeStates: nodes.saveNodeStates,
  flushSeen: nodes.flushSeen,

  enterReplica: replicas.enterReplica,
  bumpReplica: replicas.bumpReplica,
  endReplica: replicas.endReplica,
  listReplicas: replicas.listReplicas,
  openSessions: () => null,
  drawLimits,

  settle: attached.settle,
  recordOpen: attached.recordOpen,
  endOrphans: attached.endOrphans,
  listJobs: listings.listJobs,
  findJob: listings.findJob,
  listUsage: listings.listUsage,
  summarizeUsage: listings.summarizeUsage,
  loadSpending: listings.loadSpending,
  sweep,

  acceptJobs,
  findReplayed,
  claimJobs,
  startJobs,
  requeueJobs,
  finishJobs,
  keepJobs,
  heldJobs,
  heldNodes,
  readyLanes,
  nextDue,
  cancelJob,
  expireJobs,
  readyJobs,
  findDetached,
  jobMarks,
  findUsage,
  correctUsage,
  loadReservations,
  loadBodies: bodies.loadBodies,
  measureResult: bodies.measureResult,
  loadResult: bodies.loadResult,
  deleteBodies: bodies.deleteBodies,
  eraseBodies: bodies.eraseBodies,

  openDiscovery: discoveries.openDiscovery,
  noteDiscoveries: discoveries.noteDiscoveries,
  finishDiscovery: discoveries.finishDiscovery,
  openDiscoveries: discoveries.openDiscoveries,
  findDiscovery: discoveries.findDiscovery,
  loadCatalogues: discoveries.loadCatalogues,

  // There are neither providers nor routes in a simulation.
  loadProviders: () => [],
  loadRoutes: () => [],
  secretCanary: (tables: Tables, sealed: string | null) => (tables.canary ??= sealed),
} satisfies { [Name in keyof Store]?: Operation<Name> };

type Operation<Name extends keyof Store> = Store[Name] extends (...args: infer Args) => Promise<infer Answer>
  ? (tables: Tables, ...args: Args) => Answer
  : never;

const LEFT_OUT = [
  'dump',
  'listAudit',
  'insertProvider',
  'updateProvider',
  'deleteProvider',
  'insertRoute',
  'updateRoute',
  'deleteRoute',
  'resealSecrets',
] as const satisfies (keyof Store)[];

export type StoreCall = keyof typeof OPERATIONS | 'loadNodes' | 'movedNodes';

function connect(tables: Tables, reach: Reach): Store {
  const calls = Object.entries(OPERATIONS).map(([name, operation]) => {
    const run = operation as (tables: Tables, ...args: unknown[]) => unknown;
    const call = async (...args: unknown[]) => {
      const sent = args.map(asSent);
      return reach(name as StoreCall, () => {
        refuseFractions(sent);
        return run(tables, ...sent);
      });
    };
    return [name, call] as const;
  });
  const leftOut = LEFT_OUT.map((name) => [name, () => refuse(name)] as const);
  const own: Pick<Store, 'engine' | 'durability' | 'act' | 'loadNodes' | 'movedNodes'> = {
    engine: 'postgres',
    durability: 'power loss',
    /** Without its row: no promise that a simulation checks is about the audit. */
    act: (_act, run) => run(),
    // Which descriptors the caller has is asked on its side, once the answer is there.
    async loadNodes(known = () => undefined) {
      const rows = await reach('loadNodes', () => nodes.loadNodes(tables));
      const read = rows.map((row) => {
        const descriptor = known(row.id, row.descriptor_hash ?? '');
        return descriptor === undefined ? nodes.readNode(row) : { ...row, descriptor };
      });
      return { nodes: read, unreadable: [] };
    },
    async movedNodes(since, known) {
      const { fleet, nodes: moved } = await reach('movedNodes', () => nodes.movedNodes(tables, since));
      const read = moved.map(({ name, descriptor, ...row }) => {
        const has = row.descriptor_hash === null || known(row.id, row.descriptor_hash) !== undefined;
        return { ...row, descriptor: has ? null : readDescriptor(descriptor, name).descriptor };
      });
      return { fleet, nodes: read };
    },
  };
  return { ...Object.fromEntries([...calls, ...leftOut]), ...own } as unknown as Store;
}

function refuse(name: string): never {
  throw new Error(`The store of the simulation has no ${name}: write it in tests/simulation/store first.`);
}
