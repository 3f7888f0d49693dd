/**
 * The queue of attached work in memory. Jobs with equal capability, labels and pin form a lane; within it they are
 * ordered by a key that is fixed at insertion, so that order is never computed again. A waiting job is `queued` in
 * exactly one lane; it leaves by `remove`: offered, or ended.
 *
 * Bounded per capability: the caller refuses with `queue_full` when `push` says false.
 */
export const LANE_BOUND = 1000;

export interface Waiting {
  readonly id: string;
  /** The capability: jobs of all lanes of one model share its bound. */
  readonly capability: string;
  /** Equal for jobs that the same nodes can serve. */
  readonly lane: string;
  readonly order_key: number;
}

export interface Lane<T extends Waiting> {
  readonly key: string;
  readonly capability: string;
  readonly heap: T[];
}

export interface Lanes<T extends Waiting> {
  readonly byCapability: Map<string, { count: number; lanes: Map<string, Lane<T>> }>;
  readonly bound: number;
  readonly count: number;
  /** False: the capability's queue is full. A job that was in already (a retry) may be `forced`. */
  push(job: T, forced?: boolean): boolean;
  /** The job goes first next; undefined: the lane is empty. */
  head(lane: Lane<T>): T | undefined;
  remove(job: T): boolean;
  /** Jobs of the same lane that go before it. */
  position(job: T): number | null;
  depth(capability: string): number;
}

export function newLanes<T extends Waiting>(bound = LANE_BOUND): Lanes<T> {
  const byCapability: Lanes<T>['byCapability'] = new Map();
  const laneOf = (job: T): Lane<T> | undefined => byCapability.get(job.capability)?.lanes.get(job.lane);
  let count = 0;

  return {
    byCapability,
    bound,
    get count() {
      return count;
    },
    push(job, forced = false) {
      let group = byCapability.get(job.capability);
      if (group === undefined) byCapability.set(job.capability, (group = { count: 0, lanes: new Map() }));
      if (group.count >= bound && !forced) return false;
      let lane = group.lanes.get(job.lane);
      if (lane === undefined) {
        lane = { key: job.lane, capability: job.capability, heap: [] };
        group.lanes.set(job.lane, lane);
      }
      group.count++;
      count++;
      lane.heap.push(job);
      siftUp(lane.heap, lane.heap.length - 1);
      return true;
    },
    head: (lane) => lane.heap[0],
    remove(job) {
      const lane = laneOf(job);
      const index = lane === undefined ? -1 : lane.heap[0] === job ? 0 : lane.heap.indexOf(job);
      if (lane === undefined || index < 0) return false;
      removeAt(lane.heap, index);
      const group = byCapability.get(job.capability)!;
      group.count--;
      count--;
      if (lane.heap.length === 0) group.lanes.delete(lane.key);
      if (group.count === 0) byCapability.delete(job.capability);
      return true;
    },
    position(job) {
      const lane = laneOf(job);
      if (lane === undefined) return null;
      let before = 0;
      for (const other of lane.heap) if (goesBefore(other, job)) before++;
      return before;
    },
    depth: (capability) => byCapability.get(capability)?.count ?? 0,
  };
}

/** Ties go by id, which sorts by time of creation. */
function goesBefore(a: Waiting, b: Waiting): boolean {
  return a.order_key < b.order_key || (a.order_key === b.order_key && a.id < b.id);
}

function siftUp<T extends Waiting>(heap: T[], index: number): void {
  while (index > 0) {
    const parent = (index - 1) >> 1;
    if (!goesBefore(heap[index]!, heap[parent]!)) return;
    swap(heap, index, parent);
    index = parent;
  }
}

function siftDown<T extends Waiting>(heap: T[], index: number): void {
  for (;;) {
    let least = index;
    for (const child of [2 * index + 1, 2 * index + 2]) {
      if (child < heap.length && goesBefore(heap[child]!, heap[least]!)) least = child;
    }
    if (least === index) return;
    swap(heap, index, least);
    index = least;
  }
}

function removeAt<T extends Waiting>(heap: T[], index: number): void {
  const last = heap.pop()!;
  if (index === heap.length) return;
  heap[index] = last;
  siftUp(heap, index);
  siftDown(heap, index);
}

function swap<T>(heap: T[], a: number, b: number): void {
  [heap[a], heap[b]] = [heap[b]!, heap[a]!];
}
