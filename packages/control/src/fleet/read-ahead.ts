import type { KnownDescriptor, Log, NodeRecord, Store } from '@flotilla/core';

/**
 * What nodes offer, read while a start waits to know that it is alone: of ten thousand nodes that takes as long as the wait.
 * Nothing else of these rows is used, for who wrote them may still have lived; an offer stands by its hash, whoever wrote
 * it.
 *
 *     nothing ──begin()──▶ reading ──▶ read, or failed: then it is as if it had not begun ──drop()──▶ nothing
 */
export interface ReadAhead {
  begin(): void;
  /** Resolves when nothing is being read. */
  over(): Promise<void>;
  known: KnownDescriptor;
  /** There is a roster that has them. */
  drop(): void;
}

export function createReadAhead(store: Pick<Store, 'loadNodes'>, log: Log): ReadAhead {
  const records = new Map<string, NodeRecord>();
  let reading = Promise.resolve();
  return {
    begin() {
      reading = store.loadNodes().then(
        ({ nodes }) => {
          for (const node of nodes) records.set(node.id, node);
        },
        (error: unknown) =>
          log.debug({ error }, 'What nodes offer could not be read ahead; it is read later.'),
      );
    },
    over: () => reading,
    known(node, hash) {
      const record = records.get(node);
      return record?.descriptor_hash === hash ? (record.descriptor ?? undefined) : undefined;
    },
    drop: () => records.clear(),
  };
}
