import { type Refusal, type Spot, closedBy, hasLabels, isTaken } from './spot.ts';

/**
 * The spots of one model, sorted by what they can do now, so that placement costs the same with one node as with ten
 * thousand. Whoever changes a node, its health or the fullness of a pool says so with `moved`; a spot is then
 *
 *     open (in the tier of its preference) ◀──▶ patient (may open by itself) ◀──▶ shut (in no list)
 *
 * A spot whose change was not told would be offered work that it refuses, or get none.
 */
export interface ModelSpots<S extends Spot = Spot> {
  readonly size: number;
  /** Those that take work, preferred first: loaded before not loaded, in each healthy before degraded. */
  readonly open: readonly (readonly S[])[];
  /** Those that are full, or whose node may come back. */
  readonly patient: readonly S[];
  all(): Iterable<S>;
  of(node: string): readonly S[];
  /** Those on nodes with these labels, kept like the whole; the whole itself where none is asked for. */
  labelled(labels: Readonly<Record<string, string>>): ModelSpots<S>;
  add(spot: S): void;
  /** Takes out every spot of the node. */
  remove(node: string): void;
  /** The spot, its node or its pool has changed. */
  moved(spot: S): void;
}

const TIERS = 4;
const PATIENT = TIERS;
const SHUT = TIERS + 1;
/** As many label sets as keys commonly ask for; the one asked for longest ago goes when there are more. */
const SUBSETS_MOST = 32;

export function newModelSpots<S extends Spot>(): ModelSpots<S> {
  const lists: S[][] = Array.from({ length: SHUT + 1 }, () => []);
  const seats = new Map<S, { list: number; index: number }>();
  const by_node = new Map<string, S[]>();
  const subsets = new Map<string, { labels: Readonly<Record<string, string>>; spots: ModelSpots<S> }>();

  // `size` is a field, not a getter: placement would meet an object of another shape for each model.
  const whole: ModelSpots<S> & { size: number } = {
    size: 0,
    open: lists.slice(0, TIERS),
    patient: lists[PATIENT]!,
    all: () => seats.keys(),
    of: (node) => by_node.get(node) ?? [],
    labelled(labels) {
      const names = Object.keys(labels);
      if (names.length === 0) return whole;
      const key = JSON.stringify(names.sort().map((name) => [name, labels[name]]));
      const known = subsets.get(key);
      if (known !== undefined) {
        // Asked for just now: the last to go.
        subsets.delete(key);
        subsets.set(key, known);
        return known.spots;
      }
      const made = newModelSpots<S>();
      for (const spot of seats.keys()) if (hasLabels(spot.node.labels, labels)) made.add(spot);
      const oldest = subsets.size < SUBSETS_MOST ? undefined : subsets.keys().next().value;
      if (oldest !== undefined) subsets.delete(oldest);
      subsets.set(key, { labels, spots: made });
      return made;
    },
    add(spot) {
      const own = by_node.get(spot.node.id);
      if (own === undefined) by_node.set(spot.node.id, [spot]);
      else own.push(spot);
      sit(spot, listOf(spot));
      whole.size = seats.size;
      for (const { labels, spots } of subsets.values()) {
        if (hasLabels(spot.node.labels, labels)) spots.add(spot);
      }
    },
    remove(node) {
      for (const spot of by_node.get(node) ?? []) {
        leave(spot);
        seats.delete(spot);
      }
      by_node.delete(node);
      whole.size = seats.size;
      for (const { spots } of subsets.values()) spots.remove(node);
    },
    moved(spot) {
      for (const { labels, spots } of subsets.values()) {
        const has = spots.of(spot.node.id).includes(spot);
        const fits = hasLabels(spot.node.labels, labels);
        if (has && fits) spots.moved(spot);
        else if (fits) spots.add(spot);
        else if (has) spots.remove(spot.node.id);
      }
      const list = listOf(spot);
      if (seats.get(spot)?.list === list) return;
      leave(spot);
      sit(spot, list);
    },
  };
  return whole;

  function sit(spot: S, list: number): void {
    seats.set(spot, { list, index: lists[list]!.push(spot) - 1 });
  }

  /** The last of the list takes the seat: order within a list says nothing. */
  function leave(spot: S): void {
    const { list, index } = seats.get(spot)!;
    const last = lists[list]!.pop()!;
    if (last === spot) return;
    lists[list]![index] = last;
    seats.get(last)!.index = index;
  }
}

/** By itself: an operator's wish lasts, whether or not the node comes back. */
function mayOpen({ node }: Spot, closed: Refusal | null): boolean {
  if (isTaken(closed) || closed === 'resting') return true;
  return (closed === 'suspect' || closed === 'pending') && !node.cordoned && !node.draining;
}

function listOf(spot: Spot): number {
  const closed = closedBy(spot);
  if (mayOpen(spot, closed)) return PATIENT;
  if (closed !== null) return SHUT;
  const degraded = spot.backend_health === 'degraded' || spot.model_health === 'degraded';
  return (spot.loaded ? 0 : 2) + (degraded ? 1 : 0);
}
