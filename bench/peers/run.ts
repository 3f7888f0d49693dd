/**
 * What each queue is asked to do: so many jobs that do nothing, sent singly by so many at a time or in batches, done by its
 * own workers in the same process, until the last is marked as done in its store.
 */
export interface Peer {
  one(n: number): Promise<unknown>;
  many(numbers: number[]): Promise<unknown>;
  /** Starts its workers. @returns what stops them */
  work(ended: (jobs: number) => void): Promise<() => Promise<unknown>>;
}

/** @returns from the first sending to the last end */
export async function runJobs(given: URLSearchParams, peer: Peer): Promise<{ took_ms: number }> {
  const jobs = Number(given.get('jobs'));
  const batch = Number(given.get('batch'));
  const senders = Number(given.get('senders'));
  const { promise: all_ended, resolve } = Promise.withResolvers<void>();
  let left = jobs;
  const stop = await peer.work((ended) => {
    left -= ended;
    if (left <= 0) resolve();
  });
  const began_ms = performance.now();
  let next = 0;
  const send = async () => {
    while (next < jobs) {
      const from = next;
      next = Math.min(jobs, next + batch);
      const numbers = Array.from({ length: next - from }, (_, at) => from + at);
      await (batch === 1 ? peer.one(from) : peer.many(numbers));
    }
  };
  await Promise.all(Array.from({ length: senders }, send));
  await all_ended;
  const took_ms = performance.now() - began_ms;
  await stop();
  return { took_ms };
}
