import type { PageRequest } from '@flotilla/core';
import { FlotillaError, type IdKind, isId } from '@flotilla/protocol';

/** A page out of a list that is in memory already; `after` need not be in it any more. */
export function pageOfList<T>(
  items: readonly T[],
  { limit, after }: { limit: number; after?: string | undefined },
  cursor: (item: T) => string,
  isPast: (item: T, after: string) => boolean,
): { items: T[]; next_after: string | null } {
  const rest = after === undefined ? items : items.filter((item) => isPast(item, after));
  const kept = rest.slice(0, limit);
  const last = kept.at(-1);
  return { items: kept, next_after: rest.length > limit && last !== undefined ? cursor(last) : null };
}

/** @throws FlotillaError `invalid_request` for a cursor that no page gave out */
export function pageRequest(
  { limit, after }: { limit: number; after?: string | undefined },
  kind: IdKind,
): PageRequest {
  if (after === undefined) return { limit };
  if (isId(kind, after)) return { limit, after };
  throw new FlotillaError(
    'invalid_request',
    "'after' is not a cursor: take it from `next_after` of the page before.",
    {
      param: 'after',
    },
  );
}

/** @throws FlotillaError `not_found`: what has another shape was never an id of ours, and is not worth a query */
export function knownId(kind: IdKind, id: string, noun: string): string {
  if (isId(kind, id)) return id;
  throw notFound(noun, id);
}

export function notFound(noun: string, id: string): FlotillaError {
  return new FlotillaError('not_found', `There is no ${noun} ${JSON.stringify(id)}.`);
}
