import type { Bus, BusListener } from '@flotilla/core';
import type { Chance } from './chance.ts';
import type { Nature, Process } from './machine.ts';

/** How the bus is: of each message whether it is lost, late, doubled or overtaken. */
export interface Weather {
  loss: number;
  doubling: number;
  overtaking: number;
  slow_ms: number;
}

export const CALM: Weather = { loss: 0, doubling: 0, overtaking: 0, slow_ms: 0 };

/** How long a client does not notice that its server is gone. */
const NOTICED_WITHIN_MS = 4000;

/** What replicas say to each other, through one server. */
export class BusServer {
  weather: Weather = CALM;
  readonly #nature: Nature;
  readonly #chance: Chance;
  readonly #clients = new Map<string, Client>();

  constructor(nature: Nature, chance: Chance) {
    this.#nature = nature;
    this.#chance = chance;
  }

  connect(replica: string, process: Process): Bus {
    const client: Client = { process, listener: null, up: false, reached: true, sent_ms: new Map() };
    this.#clients.set(replica, client);
    const over = () => void this.#clients.delete(replica);
    process.onDeath(over);
    this.#turn(client, true, this.#chance.delay(1, 50));
    return {
      get connected() {
        return client.up;
      },
      tell: (data) => {
        if (!client.up || !client.reached) return;
        for (const [other, to] of this.#clients) {
          if (other !== replica) this.#pass(client, replica, other, to, 'told', data);
        }
      },
      send: (other, data) => {
        const to = this.#clients.get(other);
        if (client.up && client.reached && to !== undefined) {
          this.#pass(client, replica, other, to, 'sent', data);
        }
      },
      listen(listener) {
        client.listener = listener;
        if (client.up) listener.connected();
      },
      close: async () => {
        client.up = false;
        over();
      },
    };
  }

  /** Nothing of this replica passes any more, nor anything to it; it notices after a while. Null: of all. */
  away(replica: string | null): void {
    for (const client of this.#those(replica)) {
      client.reached = false;
      this.#turn(client, false, this.#chance.between(0, NOTICED_WITHIN_MS));
    }
  }

  back(replica: string | null): void {
    for (const client of this.#those(replica)) {
      if (client.reached) continue;
      client.reached = true;
      // What it did not notice was no outage to it: its messages were lost, and nobody says so.
      this.#turn(client, true, this.#chance.between(0, 1000));
    }
  }

  #those(replica: string | null): Client[] {
    return [...this.#clients].flatMap(([id, client]) => (replica === null || id === replica ? [client] : []));
  }

  #turn(client: Client, up: boolean, in_ms: number): void {
    client.process.arrives(this.#nature.scheduler.now_ms + in_ms, () => {
      if (client.up === up || client.reached !== up) return;
      client.up = up;
      if (up) client.listener?.connected();
      else client.listener?.disconnected();
    });
  }

  #pass(
    from: Client,
    sender: string,
    receiver: string,
    to: Client,
    how: 'told' | 'sent',
    data: Uint8Array,
  ): void {
    const { loss, doubling, overtaking, slow_ms } = this.weather;
    const chance = this.#chance;
    if (!to.reached || chance.happens(loss)) return;
    const { scheduler } = this.#nature;
    const soon_ms = scheduler.now_ms + slow_ms * chance.next() + chance.delay(0.2, 20);
    const overtakes = chance.happens(overtaking);
    const at_ms = overtakes ? soon_ms : Math.max(soon_ms, from.sent_ms.get(receiver) ?? 0);
    if (!overtakes) from.sent_ms.set(receiver, at_ms);
    const arrive = (when_ms: number) =>
      to.process.arrives(when_ms, () => {
        if (to.up && to.reached) to.listener?.[how](sender, data);
      });
    arrive(at_ms);
    if (chance.happens(doubling)) arrive(at_ms + chance.delay(0, 500));
  }
}

interface Client {
  process: Process;
  listener: BusListener | null;
  /** As it knows. */
  up: boolean;
  /** As it is. */
  reached: boolean;
  sent_ms: Map<string, number>;
}
