import { type Descriptor, makeId } from '@flotilla/protocol';
import { decodeEntry, encodeEntry } from '../../packages/daemon/src/journal/entry.ts';
import { openLeaseClock } from '../../packages/daemon/src/link/lease-clock.ts';
import { Link } from '../../packages/daemon/src/link/link.ts';
import type { Machine as LinkMachine } from '../../packages/daemon/src/link/machine.ts';
import type { FromLink, JournalEntry } from '../../packages/daemon/src/threads.ts';
import type { Backend } from './backend.ts';
import type { Chance } from './chance.ts';
import { type Machine, Process } from './machine.ts';
import type { Network } from './network.ts';

/**
 * A node: a machine with a model server, a disk, and a daemon that is started again whenever it has died. The link thread
 * is the real one; of the main thread there is what the link thread needs: the journal, and the word to drain.
 */
export interface NodeOptions {
  machine: Machine;
  chance: Chance;
  network: Network;
  backend: Backend;
  id: string;
  name: string;
  credential: string;
  /** Of control planes, in the order in which they are dialled. */
  addresses: string[];
  slots: number;
  /** What its daemon stands on, for a bug that is planted there. */
  machineOf: (machine: LinkMachine) => LinkMachine;
}

export const MODEL = 'm';
const BACKEND = 'main';
const RESTART_MS = 1000;
const CONNECT_TIMEOUT_MS = 2000;

export class SimNode {
  readonly options: NodeOptions;
  process: Process | null = null;
  link: Link | null = null;
  /** It was told that it is not wanted. */
  over = false;
  /** What is on the disk: the files of the journal, by attempt. */
  readonly disk = new Map<string, Buffer>();
  #starts = 0;
  /** The attempt that said last that it starts: its backend is asked in the same moment. */
  #started = 0;

  constructor(options: NodeOptions) {
    this.options = options;
  }

  get name(): string {
    return this.options.name;
  }

  start(): void {
    if (this.process !== null || this.over) return;
    const { machine, chance, network, backend, name, addresses, credential, slots, machineOf } = this.options;
    const process = new Process(`${name}#${++this.#starts}`, machine, chance.fork());
    this.process = process;
    process.onDeath(() => {
      this.process = null;
      this.link = null;
    });
    const progress = new SharedArrayBuffer(4);
    const link = new Link({
      data: {
        control_url: addresses.map((address) => `http://${address}`).join(','),
        credential,
        boot_id: makeId('boot', machine.wall_ms(), process.chance.bytes(10)),
        version: '0.0.0-simulation',
        descriptor: descriptorOf(name, slots),
        descriptor_hash: `slots-${slots}`,
        backends: [{ id: BACKEND, base_url: 'http://127.0.0.1/v1', pool: BACKEND, headers: {} }],
        health: [{ id: BACKEND, health: 'healthy', models: [{ id: MODEL, health: 'healthy' }] }],
        progress,
        connect_timeout_ms: CONNECT_TIMEOUT_MS,
        journal: [...this.disk.values()].map((file) => this.#read(file)),
        journal_health: { health: 'healthy' },
      },
      machine: machineOf({
        clock: process.clock,
        random: process.chance,
        lease_clock: openLeaseClock(
          () => machine.steady_ms(),
          () => machine.uptime_ms() / 1000,
          () => machine.wall_ms(),
        ),
        dial: (options, events) =>
          network.dial({ name, process, sent: (text) => this.#said(text) }, options, events),
        agent: backend.agentOf(process, () => this.#started),
        host_facts: () => ({}),
      }),
      post: (message) => {
        if (message.type === 'acked') Atomics.add(new Int32Array(progress), 0, 1);
        this.#hear(process, message);
      },
    });
    this.link = link;
    link.start();
  }

  /** Its process ends as by `kill -9`, and is started again. */
  crash(restart_ms = RESTART_MS): void {
    this.process?.die();
    this.options.machine.nature.scheduler.after(restart_ms, () => this.start());
  }

  /** It is taken away for good. */
  end(): void {
    this.over = true;
    this.process?.die();
  }

  /** An orderly stop; a service manager starts it again. */
  drain(deadline_ms: number): void {
    const { link, process } = this;
    process?.arrives(0, () => link!.hear({ type: 'drain', deadline_ms, reason: 'it is restarted' }));
  }

  #read(file: Buffer): JournalEntry {
    const read = decodeEntry(file);
    if (typeof read === 'string') throw new Error(read);
    return read.entry;
  }

  #said(text: string): void {
    if (!text.startsWith('{"type":"job.started"')) return;
    this.#started = (JSON.parse(text) as { attempt: number }).attempt;
  }

  #hear(process: Process, message: FromLink): void {
    const { machine, chance, name } = this.options;
    const { scheduler, history } = machine.nature;
    const soon_ms = scheduler.now_ms + chance.delay(0.05, 5);
    switch (message.type) {
      case 'journal_keep': {
        const file = Buffer.concat(encodeEntry(message.entry, this.options.id));
        const { job, attempt } = message.entry.offer;
        process.arrives(soon_ms + chance.delay(0.5, 30), () => void this.disk.set(`${job} ${attempt}`, file));
        return;
      }
      case 'journal_drop':
        // After what was to be written before it.
        process.arrives(soon_ms + 40, () => void this.disk.delete(`${message.job} ${message.attempt}`));
        return;
      case 'stopping':
        process.arrives(soon_ms, () =>
          this.link?.hear({ type: 'drain', deadline_ms: 0, reason: message.why }),
        );
        return;
      case 'stopped':
        history.add(name, `has stopped: ${message.why}`);
        this.over ||= message.why === 'revoked';
        process.arrives(soon_ms, () => {
          process.die();
          // A service manager does not start again what was told that another has its place; a person does.
          scheduler.after(RESTART_MS, () => this.start());
        });
        return;
      case 'connected':
      case 'disconnected':
      case 'fenced':
        return history.add(process.name, message.type, message);
      default:
    }
  }
}

function descriptorOf(name: string, slots: number): Descriptor {
  return {
    name,
    labels: {},
    version: '0.0.0-simulation',
    backends: [{ id: BACKEND, kind: 'openai', pool: BACKEND, models: [{ id: MODEL, operations: ['chat'] }] }],
    pools: [{ id: BACKEND, capacity: slots, capacity_from: 'config' }],
  };
}
