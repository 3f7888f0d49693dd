import type { FromLink, LinkThreadData } from '../threads.ts';
import { systemRandom } from '../clock.ts';
import { Link } from '../link/link.ts';
import { thisMachine } from '../link/machine.ts';
import { ScriptedBackend } from './scripted-backend.ts';
import { ScriptedControl } from './scripted-control.ts';

/** A link between a scripted control plane and a scripted backend, all real sockets, in this thread. */
export class LinkBench {
  readonly control = new ScriptedControl();
  readonly backend = new ScriptedBackend();
  readonly posted: FromLink[] = [];
  slots = 4;
  /** How long its machine has slept. */
  slept_ms = 0;
  #link: Link | null = null;

  get link(): Link {
    if (this.#link === null) throw new Error('The link has not been started.');
    return this.#link;
  }

  data(): LinkThreadData {
    return {
      control_url: this.control.url,
      credential: 'fln_test',
      boot_id: 'boot_1',
      version: '0.0.0-test',
      descriptor: {
        name: 'tester',
        labels: {},
        version: '0.0.0-test',
        backends: [{ id: 'main', kind: 'openai', pool: 'main', models: [{ id: 'm', operations: ['chat'] }] }],
        pools: [{ id: 'main', capacity: this.slots, capacity_from: 'config' }],
      },
      descriptor_hash: 'hash-1',
      backends: [
        { id: 'main', base_url: this.backend.base_url, pool: 'main', headers: { 'x-own': 'my-own-key' } },
      ],
      health: [{ id: 'main', health: 'healthy', models: [] }],
      progress: new SharedArrayBuffer(4),
      connect_timeout_ms: 2000,
      journal: [],
      journal_health: { health: 'healthy' },
    };
  }

  /** @param chance for delays and jitter; 0 reconnects at once */
  async start(chance = 0, data: (data: LinkThreadData) => LinkThreadData = (same) => same): Promise<void> {
    this.backend.changed = () => this.control.nudge();
    await Promise.all([this.control.listen(), this.backend.listen()]);
    const changed = data(this.data());
    const machine = thisMachine(changed.connect_timeout_ms);
    this.#link = new Link({
      data: changed,
      machine: {
        ...machine,
        lease_clock: () => machine.lease_clock() + this.slept_ms,
        random: { ...systemRandom, next: () => chance },
      },
      post: (message) => {
        this.posted.push(message);
        this.control.nudge();
      },
    });
    this.#link.start();
  }

  async up(count = 1): Promise<void> {
    await this.control.until(() => this.posts('connected').length >= count, `connected ${count} times`);
  }

  posts<T extends FromLink['type']>(type: T): Extract<FromLink, { type: T }>[] {
    return this.posted.filter((message) => message.type === type) as Extract<FromLink, { type: T }>[];
  }

  async stop(): Promise<void> {
    if (this.#link !== null && this.posts('stopped').length === 0) {
      this.control.refuse = null;
      this.#link.hear({ type: 'drain', deadline_ms: 0, reason: 'test over' });
      await this.control.until(() => this.posts('stopped').length === 1, 'stopped');
    }
    await Promise.all([this.control.close(), this.backend.close()]);
  }
}
