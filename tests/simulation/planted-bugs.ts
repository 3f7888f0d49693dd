import type { HttpCalls } from '@flotilla/core';
import { FAULTS } from './faults.ts';
import type { Invariant } from './invariants.ts';
import type { Bug, WorldOptions } from './world.ts';

/** Bugs that break one promise each, put in where a world lets them in: proof that the simulator would see them. */
export interface PlantedBug {
  breaks: Invariant;
  name: string;
  bug: Bug;
  /** What it takes to bring it out, where chance seldom does. */
  trouble?: WorldOptions['trouble'];
}

export const PLANTED_BUGS: readonly PlantedBug[] = [
  {
    breaks: 'P1',
    name: 'a 202 before its job is committed',
    bug: {
      storeOf: (store) => ({
        ...store,
        async acceptJobs(batch) {
          store.acceptJobs(batch).catch(() => undefined);
          return batch.map(({ id }) => ({ accepted: id }));
        },
      }),
    },
  },
  {
    breaks: 'P2',
    name: 'a success whose record is on its way',
    bug: {
      storeOf: (store) => ({
        ...store,
        async settle(batch) {
          store.settle(batch).catch(() => undefined);
        },
      }),
    },
  },
  {
    breaks: 'P3',
    name: 'a result that is written into the row of another job',
    bug: {
      storeOf(store) {
        let last: string | null = null;
        return {
          ...store,
          finishJobs(batch) {
            const moved = batch.map((row) => ({
              ...row,
              result: row.result === null ? null : (last ?? row.result),
            }));
            last = batch.find(({ result }) => result !== null)?.result ?? last;
            return store.finishJobs(moved);
          },
        };
      },
    },
  },
  {
    breaks: 'P3',
    name: 'a cancel that does not look whether the job has ended',
    bug: {
      storeOf: (store, { tables }) => ({
        ...store,
        async cancelJob(id, message) {
          const cancellation = await store.cancelJob(id, message);
          const row = tables.jobs.get(id);
          if ('refused' in cancellation && row !== undefined) tables.jobs.put({ ...row, state: 'cancelled' });
          return cancellation;
        },
      }),
    },
  },
  {
    breaks: 'P4',
    name: 'a node that never learns that its lease is over',
    bug: { machineOf: (machine) => ({ ...machine, lease_clock: () => 0 }) },
    trouble(world) {
      for (let at_ms = 1000; at_ms < 9000; at_ms += 1000) {
        const cutOff = () => FAULTS['a node is cut off']!(world, world.chance, 4 * world.heartbeat_ms);
        world.scheduler.at(at_ms, cutOff);
      }
    },
  },
  {
    breaks: 'P6',
    name: 'a piece that is passed on twice',
    bug: {
      machineOf(machine) {
        let pieces = 0;
        const { agent } = machine;
        const twice = (calls: HttpCalls): HttpCalls => ({
          onRequestStart: (control) => calls.onRequestStart(control),
          onResponseStart: (...head) => calls.onResponseStart(...head),
          onResponseData(control, chunk) {
            calls.onResponseData(control, chunk);
            if (++pieces % 40 === 0) calls.onResponseData(control, chunk);
          },
          onResponseEnd: () => calls.onResponseEnd(),
          onResponseError: (...error) => calls.onResponseError(...error),
        });
        return {
          ...machine,
          agent: {
            dispatch: (ask, calls) => agent.dispatch(ask, twice(calls)),
            destroy: () => agent.destroy(),
          },
        };
      },
    },
  },
  {
    breaks: 'limits',
    name: 'a draw that grants one more than there is',
    bug: {
      storeOf: (store) => ({
        ...store,
        async drawLimits(replica, draws) {
          const drawn = await store.drawLimits(replica, draws);
          return drawn?.map((one) => ({ ...one, granted: one.granted + 1 })) ?? null;
        },
      }),
    },
  },
  {
    breaks: 'slots',
    name: 'a slot that is free and still has its holder',
    bug: {
      served({ roster }) {
        for (const { ledger } of roster.all()) {
          let freed = 0;
          const forget = ledger.holders.delete.bind(ledger.holders);
          ledger.holders.delete = (key) => ++freed % 3 === 0 || forget(key);
        }
      },
    },
  },
  {
    breaks: 'liveness',
    name: 'beats that a control plane does not see',
    bug: {
      swallows: (text) => text.startsWith('{"type":"node.heartbeat"') && /"seq":\d*[4-9],/.test(text),
    },
  },
  {
    breaks: 'ends',
    name: 'an upkeep that finds neither deadlines nor what is lost with its node',
    bug: { storeOf: (store) => ({ ...store, expireJobs: async () => [], heldNodes: async () => [] }) },
  },
  {
    breaks: 'sound',
    name: 'a beat that throws',
    bug: {
      machineOf: (machine) => ({
        ...machine,
        host_facts() {
          if (machine.random.next() < 0.01) throw new Error('This machine cannot be asked for its load.');
          return {};
        },
      }),
    },
  },
];
