import { CALM } from './bus.ts';
import { MOODS } from './backend.ts';
import type { Chance } from './chance.ts';
import { SOUND } from './store-server.ts';
import type { World } from './world.ts';

/** What goes wrong in a run: a few of these, each at its moment. What it does is undone after a while, or when all heals. */
export type Fault = (world: World, chance: Chance, for_ms: number) => void;

export const FAULTS: Record<string, Fault> = {
  'a control plane dies'({ replicas }, chance, for_ms) {
    chance.pick(replicas).crash(for_ms);
  },
  'a control plane dies at a commit'({ replicas, store }, chance) {
    store.fatal.set(chance.pick(replicas).address, chance.pick(['before', 'after', 'after']));
  },
  'a control plane is replaced'({ replicas }, chance, for_ms) {
    chance.pick(replicas).stop(for_ms);
  },
  'a control plane stands still'({ replicas }, chance, for_ms) {
    chance.pick(replicas).process?.stop(for_ms);
  },
  'a node dies'({ nodes }, chance, for_ms) {
    chance.pick(nodes).crash(for_ms);
  },
  'a node loses its power'({ nodes, replicas, network }, chance, for_ms) {
    const node = chance.pick(nodes);
    // Nobody is told: there is nobody who could tell.
    for (const { address } of replicas) network.sever(node.name, address);
    node.crash(for_ms);
  },
  'a node is restarted'({ nodes }, chance, for_ms) {
    chance.pick(nodes).drain(for_ms);
  },
  'a daemon stands still'({ nodes }, chance, for_ms) {
    chance.pick(nodes).process?.stop(for_ms);
  },
  'a machine sleeps'({ nodes }, chance, for_ms) {
    chance.pick(nodes).options.machine.sleep(for_ms, chance.pick(['stands', 'goes']));
  },
  'a second daemon has the credential of a node'(world, chance) {
    const node = chance.pick(world.nodes);
    if (world.twins.every(({ options }) => options.id !== node.options.id)) world.addTwin(node, chance);
  },
  'an operator drains a node'(world, chance, for_ms) {
    const { id } = chance.pick(world.nodes).options;
    world.asOperator(({ fleet }) => fleet.drain(id, for_ms));
  },
  'an operator cordons a node, and takes it back'(world, chance, for_ms) {
    const { id } = chance.pick(world.nodes).options;
    world.asOperator(({ fleet }) => fleet.cordon(id, true));
    world.scheduler.after(for_ms, () => world.asOperator(({ fleet }) => fleet.cordon(id, false)));
  },
  'an operator revokes a node'(world, chance) {
    const { id } = chance.pick(world.nodes).options;
    world.asOperator(({ fleet }) => fleet.revoke(id));
  },
  'a wall clock jumps'({ nodes, replicas }, chance) {
    const { machine } = chance.pick([...nodes, ...replicas]).options;
    machine.wall_skew_ms += chance.between(-3_600_000, 3_600_000);
  },
  'a link breaks'({ nodes, replicas, network }, chance) {
    const node = chance.pick(nodes);
    for (const { address } of replicas) network.cut(node.name, address);
  },
  'a link is half open'({ nodes, replicas, network }, chance) {
    const node = chance.pick(nodes);
    for (const { address } of replicas) network.sever(node.name, address);
  },
  'a node is cut off'({ nodes, replicas, network, scheduler }, chance, for_ms) {
    const node = chance.pick(nodes);
    for (const { address } of replicas) {
      network.line(node.name, address).stalled_until_ms = scheduler.now_ms + for_ms;
    }
  },
  'a control plane is cut off from nodes'({ nodes, replicas, network, scheduler }, chance, for_ms) {
    const { address } = chance.pick(replicas);
    for (const node of nodes) {
      network.line(node.name, address).stalled_until_ms = scheduler.now_ms + for_ms;
    }
  },
  'a line is slow'({ nodes, replicas, network, scheduler }, chance, for_ms) {
    const line = network.line(chance.pick(nodes).name, chance.pick(replicas).address);
    line.slow_ms = chance.between(50, 1500);
    scheduler.after(for_ms, () => (line.slow_ms = 0));
  },
  'the bus loses, doubles and mixes up'({ bus, scheduler }, chance, for_ms) {
    bus.weather = {
      loss: chance.between(0, 0.3),
      doubling: chance.between(0, 0.2),
      overtaking: chance.between(0, 0.1),
      slow_ms: chance.between(0, 400),
    };
    scheduler.after(for_ms, () => (bus.weather = CALM));
  },
  'the bus is away'({ bus, scheduler }, _chance, for_ms) {
    bus.away(null);
    scheduler.after(for_ms, () => bus.back(null));
  },
  'a control plane loses the bus'({ bus, replicas, scheduler }, chance, for_ms) {
    const id = chance.pick(replicas).serving?.id;
    if (id === undefined) return;
    bus.away(id);
    scheduler.after(for_ms, () => bus.back(id));
  },
  'the store fails now and then'({ store, scheduler }, chance, for_ms) {
    store.trouble = {
      failing: chance.between(0, 0.3),
      losing: chance.between(0, 0.3),
      slow_ms: chance.between(0, 300),
    };
    scheduler.after(for_ms, () => (store.trouble = SOUND));
  },
  'the store is away'({ store, scheduler }, chance, for_ms) {
    store.silent = chance.happens(0.5);
    store.away_until_ms = scheduler.now_ms + for_ms;
  },
  'a backend is in a mood'({ nodes, scheduler }, chance, for_ms) {
    const { backend } = chance.pick(nodes).options;
    backend.mood = chance.pick(MOODS);
    scheduler.after(for_ms, () => (backend.mood = 'well'));
  },
  'a backend is slow'({ nodes, scheduler }, chance, for_ms) {
    const { backend } = chance.pick(nodes).options;
    const { slow } = backend;
    backend.slow = slow * chance.between(2, 20);
    scheduler.after(for_ms, () => (backend.slow = slow));
  },
};
