import type { Clock, Log, Timer } from '@flotilla/core';
import type { Chance } from './chance.ts';
import type { History } from './history.ts';
import type { Scheduler } from './scheduler.ts';

/** What all parts of one world share. */
export interface Nature {
  scheduler: Scheduler;
  history: History;
  /** A process has met a fault of its own: one that nobody caught. */
  broke(who: string, error: unknown): void;
}

/** 2030-01-01T00:00:00Z */
const EPOCH_MS = 1_893_456_000_000;
/** As real ones do, a timer fires at the next whole millisecond at the earliest. */
const TIMER_LEAST_MS = 1;

/**
 * A machine: its clocks, and whether it is awake. Its steady clock begins anywhere and runs a little fast or slow; in sleep it
 * stands or goes on, as machines differ in that. Its wall clock is set at will.
 */
export class Machine {
  readonly name: string;
  readonly nature: Nature;
  readonly chance: Chance;
  awake = true;
  wall_skew_ms = 0;
  readonly processes = new Set<Process>();
  readonly #rate: number;
  readonly #began_ms: number;
  /** How long the steady clock has stood still. */
  #stood_ms = 0;

  constructor(name: string, nature: Nature, chance: Chance) {
    this.name = name;
    this.nature = nature;
    this.chance = chance;
    this.#rate = chance.between(0.999, 1.001);
    this.#began_ms = chance.between(0, 1e7);
  }

  steady_ms(): number {
    return this.#began_ms + (this.nature.scheduler.now_ms - this.#stood_ms) * this.#rate;
  }

  /** With the time that it has slept. */
  uptime_ms(): number {
    return this.#began_ms + this.nature.scheduler.now_ms * this.#rate;
  }

  wall_ms(): number {
    return Math.round(EPOCH_MS + this.nature.scheduler.now_ms + this.wall_skew_ms);
  }

  /** How long the scheduler is to wait for so much of the steady clock's time. */
  wait_ms(steady_ms: number): number {
    return steady_ms / this.#rate;
  }

  sleep(for_ms: number, steady_clock: 'stands' | 'goes'): void {
    const { scheduler, history } = this.nature;
    if (!this.awake) return;
    this.awake = false;
    history.add(this.name, `sleeps for ${for_ms.toFixed(0)} ms, its steady clock ${steady_clock}`);
    scheduler.after(for_ms, () => {
      this.awake = true;
      if (steady_clock === 'stands') this.#stood_ms += for_ms;
      history.add(this.name, 'wakes');
      for (const one of this.processes) one.resumed();
    });
  }
}

/**
 * One run of a program on a machine. It dies wholesale: nothing of a dead one runs, whatever it had waited for. While it
 * is stopped, or its machine sleeps, what is for it waits; then its timers come first, as in a real event loop.
 */
export class Process {
  readonly name: string;
  readonly machine: Machine;
  readonly chance: Chance;
  alive = true;
  /** As by SIGSTOP. */
  stopped = false;
  /** By virtual time: when it stood still last. */
  stood_until_ms = -Infinity;
  readonly clock: Clock;
  readonly log: Log;
  readonly #dying: (() => void)[] = [];
  #due: (() => void)[] = [];
  #arrived: (() => void)[] = [];

  constructor(name: string, machine: Machine, chance: Chance) {
    this.name = name;
    this.machine = machine;
    this.chance = chance;
    machine.processes.add(this);
    const { history } = machine.nature;
    const logged = (level: string) => (fields: object, message: string) =>
      history.add(name, `${level}: ${message}`, fields);
    this.log = {
      debug: logged('debug'),
      info: logged('info'),
      warn: logged('WARN'),
      error: logged('ERROR'),
    };
    this.clock = {
      now_ms: () => machine.steady_ms(),
      wall_ms: () => machine.wall_ms(),
      after: (delay_ms, run) => this.#after(delay_ms, run),
    };
  }

  get running(): boolean {
    return this.alive && !this.stopped && this.machine.awake;
  }

  /** Something comes to this process from outside, at this time. */
  arrives(at_ms: number, run: () => void): void {
    this.machine.nature.scheduler.at(at_ms, () => this.#take(this.#arrived, run));
  }

  /** The same, now. */
  hears(run: () => void): void {
    this.#take(this.#arrived, run);
  }

  /** Called when it dies, however it does. */
  onDeath(run: () => void): void {
    this.#dying.push(run);
  }

  /** As by SIGKILL, and at the end of an orderly stop. */
  die(): void {
    if (!this.alive) return;
    this.alive = false;
    this.machine.processes.delete(this);
    this.#due = [];
    this.#arrived = [];
    this.machine.nature.history.add(this.name, 'dies');
    for (const run of this.#dying) run();
  }

  stop(for_ms: number): void {
    if (!this.alive || this.stopped) return;
    this.stopped = true;
    const { scheduler, history } = this.machine.nature;
    history.add(this.name, `is stopped for ${for_ms.toFixed(0)} ms`);
    scheduler.after(for_ms, () => {
      this.stopped = false;
      history.add(this.name, 'goes on');
      this.resumed();
    });
  }

  resumed(): void {
    if (!this.running) return;
    const { scheduler } = this.machine.nature;
    this.stood_until_ms = scheduler.now_ms;
    const waiting = [...this.#due, ...this.#arrived];
    this.#due = [];
    this.#arrived = [];
    for (const run of waiting) scheduler.at(scheduler.now_ms, () => this.#take(this.#arrived, run));
  }

  #take(line: (() => void)[], run: () => void): void {
    if (!this.alive) return;
    if (!this.running) {
      line.push(run);
      return;
    }
    try {
      run();
    } catch (error) {
      this.machine.nature.broke(this.name, error);
    }
  }

  #after(delay_ms: number, run: () => void): Timer {
    const { machine } = this;
    const { scheduler } = machine.nature;
    // A timer may come a moment early by the clock that it is measured with, and late.
    const moved_ms = this.chance.between(-0.5, 1);
    const due_ms = machine.steady_ms() + Math.max(TIMER_LEAST_MS, delay_ms + moved_ms);
    let over = false;
    const fire = () => {
      if (over) return;
      // It stood still with its machine's clock.
      const left_ms = due_ms - machine.steady_ms();
      if (left_ms > 0.001) plan(left_ms);
      else {
        over = true;
        run();
      }
    };
    const plan = (left_ms: number) =>
      scheduler.after(machine.wait_ms(left_ms), () => this.#take(this.#due, fire));
    const planned = plan(due_ms - machine.steady_ms());
    return {
      cancel() {
        over = true;
        planned.cancel();
      },
    };
  }
}
