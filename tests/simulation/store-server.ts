import type { Store } from '@flotilla/core';
import type { Chance } from './chance.ts';
import type { Process } from './machine.ts';
import { createDatabase, type Database, type StoreCall } from './store/database.ts';
import { answerLost, storeAway } from './store/failure.ts';

/**
 * The server of the store, and the ways to it. A call is committed at one moment and answered at another; between them,
 * and on the way, things go wrong: it never arrives, its answer is lost, who asked dies.
 */
export interface StoreTrouble {
  /** Of each call, how likely it fails before its commit, and how likely its answer is lost after it. */
  failing: number;
  losing: number;
  slow_ms: number;
}

export const SOUND: StoreTrouble = { failing: 0, losing: 0, slow_ms: 0 };

/** Whoever is silent for so long is given up. */
const GIVEN_UP_MS = 5000;
/** Calls that only read: between their commit and their answer nothing can happen that matters. */
const READS = /^(?:load|find|list|held|job|next|ready|config|moved|open|ping|measure)/;

export class StoreServer {
  readonly database: Database;
  trouble: StoreTrouble = SOUND;
  /** Until then it cannot be reached: refused at once, or silent. */
  away_until_ms = 0;
  silent = false;
  /** Dies with the next commit of this replica that changes a job: just before it, or before it is answered. */
  readonly fatal = new Map<string, 'before' | 'after'>();
  /** After each commit. */
  committed: (call: StoreCall) => void = () => undefined;
  readonly #chance: Chance;

  constructor(now_ms: () => number, chance: Chance) {
    this.database = createDatabase({ now_ms });
    this.#chance = chance;
  }

  connect(process: Process, address: string): Store {
    return this.database.connect((call, commit) => this.#reach(process, address, call, commit));
  }

  /** For what is there before anything runs. */
  atOnce(): Store {
    return this.database.connect(async (_call, commit) => commit());
  }

  #reach<Answer>(process: Process, address: string, call: StoreCall, commit: () => Answer): Promise<Answer> {
    const { scheduler, history } = process.machine.nature;
    const chance = this.#chance;
    return new Promise((resolve, reject) => {
      const fail = (in_ms: number, error: Error) => {
        process.arrives(scheduler.now_ms + in_ms, () => {
          history.add(process.name, `${call} fails: ${error.message}`);
          reject(error);
        });
      };
      const delay_ms = chance.delay(0.2, 8) + this.trouble.slow_ms * chance.next();
      scheduler.after(delay_ms, () => {
        if (scheduler.now_ms < this.away_until_ms) {
          return fail(this.silent ? GIVEN_UP_MS : 0.5, this.silent ? answerLost() : storeAway());
        }
        if (chance.happens(this.trouble.failing)) return fail(0.5, storeAway());
        const { transitions } = this.database;
        const from = transitions.length;
        if (this.#fatal(address, 'before', READS.test(call))) {
          history.add(process.name, `before its ${call} is committed:`);
          return process.die();
        }
        let answer: Answer;
        try {
          answer = commit();
        } catch (error) {
          return process.hears(() => reject(error as Error));
        }
        if (transitions.length > from || !READS.test(call))
          history.add('store', `${call} of ${process.name}`);
        for (const moved of transitions.slice(from)) history.add('store', 'commits', moved);
        this.committed(call);
        if (this.#fatal(address, 'after', transitions.length === from)) {
          history.add(process.name, `with its ${call} committed, and not answered:`);
          return process.die();
        }
        if (chance.happens(this.trouble.losing)) return fail(chance.delay(0.2, 8), answerLost());
        // Reads have one moment: the half of all events would be answers otherwise.
        if (READS.test(call) || chance.happens(0.7)) process.hears(() => resolve(answer));
        else process.arrives(scheduler.now_ms + chance.delay(0.2, 30), () => resolve(answer));
      });
    });
  }

  #fatal(address: string, when: 'before' | 'after', spared: boolean): boolean {
    if (spared || this.fatal.get(address) !== when) return false;
    this.fatal.delete(address);
    return true;
  }
}
