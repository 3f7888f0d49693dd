import type { Store } from '@flotilla/core';

/**
 * Epochs for connections being registered. Whoever asks while a statement is in flight shares the next one, so a storm
 * of ten thousand reconnects costs a handful of statements.
 */
export interface Epochs {
  /** @returns undefined for a node the store does not know; rejects while the store does not answer */
  take(node: string): Promise<number | undefined>;
}

export function createEpochs(store: Store, replica: string): Epochs {
  let waiting: { node: string; resolve(epoch: number | undefined): void; reject(error: unknown): void }[] =
    [];
  let asking = false;

  return {
    take: (node) =>
      new Promise((resolve, reject) => {
        waiting.push({ node, resolve, reject });
        if (!asking) void ask();
      }),
  };

  async function ask(): Promise<void> {
    asking = true;
    while (waiting.length > 0) {
      // A node that asks twice must get two epochs: its second request waits for the next statement.
      const batch = new Map<string, (typeof waiting)[number]>();
      const later: typeof waiting = [];
      for (const one of waiting) {
        if (batch.has(one.node)) later.push(one);
        else batch.set(one.node, one);
      }
      waiting = later;
      try {
        const epochs = await store.takeEpochs(replica, [...batch.keys()]);
        for (const one of batch.values()) one.resolve(epochs.get(one.node));
      } catch (error) {
        for (const one of batch.values()) one.reject(error);
      }
    }
    asking = false;
  }
}
