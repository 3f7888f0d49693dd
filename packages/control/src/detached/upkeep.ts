import type { Clock, EndedJob, Log, Store, Timer } from '@flotilla/core';

/**
 * Time, for detached jobs: deadlines, back-offs and retention, judged by the store's clock. One timer, at the earliest
 * moment that anything is due by the store's own indexes, so no deadline waits for an interval; a slow look behind it
 * finds what was lost: a hint, a node, another replica's work.
 *
 *     waiting ──due, woken, or 5 s──▶ looking ──▶ waiting
 */
export interface UpkeepDeps {
  clock: Clock;
  log: Log;
  store: Pick<Store, 'expireJobs' | 'readyJobs' | 'readyLanes' | 'eraseBodies' | 'nextDue'>;
  expired(end: EndedJob): void;
  /**
   * Finds out which jobs have ended without this process hearing of it, and tells of them.
   * @param of_all else of some, the next ones with each call
   */
  learnEnds(of_all: boolean): Promise<void>;
  ready(lane: string, order_key: number, priority: number): void;
  /** Lanes have become ready. */
  wake(): void;
  /** Nodes and jobs whose end is decided by what nodes come back with, or by the look at them; not by a deadline. */
  spared(): Promise<string[]>;
  /** Other replicas make jobs ready, and end them, too. */
  shared: boolean;
  /** How long until a job is not among them any more; Infinity: none is that depends on time. */
  spareEndsIn(): number;
  /** Looks for what was lost with nodes. */
  sweepNodes(): Promise<void>;
}

export interface Upkeep {
  /** Something will be due in so long. */
  wakeIn(ms: number): void;
  /** A lease of a former process will be over in so long. */
  lookAtNodesIn(ms: number): void;
  /** What was to end a job may have ended it, although its answer was lost. */
  doubt(): void;
  /** Resolves when a look under way is over; none begins after. */
  close(): Promise<void>;
}

const SLOW_LOOK_MS = 5000;
/** What another replica accepted, and no hint told of, waits no longer than this. */
const SHARED_LOOK_MS = 500;
const RETRY_MS = 500;
/** Leases that end within so long share a look, at the end of it: of ten thousand nodes lost together there are a few. */
const LEASE_LOOKS_MS = 250;
/** Two looks are this far apart, whatever is due: a clock that is a moment behind does not spin. */
const LEAST_MS = 10;
const ROWS = 500;
/** Rounds of one look, so that a stop never waits long for it. */
const ROUNDS_MOST = 20;
const LANES = 1000;

export function startUpkeep(deps: UpkeepDeps): Upkeep {
  const { clock, log, store } = deps;
  let timer: Timer | null = null;
  let due_ms = 0;
  let running: Promise<void> | null = null;
  let slow_at_ms = 0;
  /** When leases will be over that were told of. A look before one of these moments does not do for it. */
  const lease_ends_ms = new Set<number>();
  /** The last lane of the look before, where that did not see them all. */
  let lanes_after = '';
  let in_doubt = false;
  let closed = false;
  schedule(0);
  return {
    wakeIn: schedule,
    lookAtNodesIn(ms) {
      const at_ms = Math.ceil((clock.now_ms() + ms) / LEASE_LOOKS_MS) * LEASE_LOOKS_MS;
      lease_ends_ms.add(at_ms);
      schedule(at_ms - clock.now_ms());
    },
    doubt() {
      in_doubt = true;
      schedule(RETRY_MS);
    },
    async close() {
      closed = true;
      timer?.cancel();
      await running;
    },
  };

  function schedule(in_ms: number): void {
    if (closed) return;
    const at_ms = clock.now_ms() + Math.max(LEAST_MS, in_ms);
    if (timer !== null && due_ms <= at_ms) return;
    timer?.cancel();
    due_ms = at_ms;
    timer = clock.after(at_ms - clock.now_ms(), () => {
      timer = null;
      // Whoever looks already schedules the next look when done, and not later than this one.
      if (running !== null) return schedule(LEAST_MS);
      running = look().finally(() => {
        running = null;
      });
    });
  }

  async function look(): Promise<void> {
    try {
      await expire();
      await learn();
      const readied = await readyAgain();
      const now_ms = clock.now_ms();
      const slow = now_ms >= slow_at_ms || now_ms >= Math.min(...lease_ends_ms);
      if (slow) {
        slow_at_ms = now_ms + SLOW_LOOK_MS;
        for (const at_ms of lease_ends_ms) if (at_ms <= now_ms) lease_ends_ms.delete(at_ms);
        await deps.sweepNodes();
        // What another replica ended is told by a hint, or found here.
        if (deps.shared) await deps.learnEnds(false);
      }
      // After it: what was lost with a node is ready now.
      if (readied || slow || deps.shared) await findLanes();
      if (slow) await erase();
      const due_in_ms = (await store.nextDue(await deps.spared())) ?? SLOW_LOOK_MS;
      const lease_over_in_ms = Math.min(...lease_ends_ms) - clock.now_ms();
      const look_ms = deps.shared ? SHARED_LOOK_MS : SLOW_LOOK_MS;
      schedule(Math.min(due_in_ms, deps.spareEndsIn(), lease_over_in_ms, look_ms));
    } catch (error) {
      log.warn({ error }, 'Detached jobs could not be looked after; it will be tried again.');
      in_doubt = true;
      schedule(RETRY_MS);
    }
  }

  async function expire(): Promise<void> {
    for (let rounds = 0; rounds < ROUNDS_MOST; rounds++) {
      const ended = await store.expireJobs(ROWS, await deps.spared());
      for (const end of ended) deps.expired(end);
      if (ended.length < ROWS) return;
    }
  }

  async function learn(): Promise<void> {
    if (!in_doubt) return;
    in_doubt = false;
    await deps.learnEnds(true);
  }

  async function readyAgain(): Promise<boolean> {
    const lanes = await store.readyJobs(ROWS);
    // Said at once: of very many lanes the look below sees a part.
    for (const { lane, order_key, priority } of lanes) deps.ready(lane, order_key, priority);
    return lanes.length > 0;
  }

  async function findLanes(): Promise<void> {
    const lanes = await store.readyLanes(LANES, lanes_after);
    // However many there are, each has its turn.
    lanes_after = lanes.length < LANES ? '' : lanes.at(-1)!.lane;
    for (const { lane, order_key, priority } of lanes) deps.ready(lane, order_key, priority);
    deps.wake();
  }

  async function erase(): Promise<void> {
    for (let rounds = 0; rounds < ROUNDS_MOST; rounds++) if ((await store.eraseBodies(ROWS)) < ROWS) return;
  }
}
