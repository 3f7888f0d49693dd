import type {
  ClaimedJob,
  DetachedJob,
  Finish,
  InventoriedJob,
  JobFence,
  Requeue,
  Store,
} from '@flotilla/core';
import { newId, T0 } from './rows.ts';

export function aDetachedJob(over: Partial<DetachedJob> = {}): DetachedJob {
  return {
    id: newId('job'),
    kind: 'inference',
    replica: 'rep_a',
    key: 'key_a',
    model: 'llama3',
    operation: 'chat',
    request_id: newId('request'),
    lane: newId('boot'),
    order_key: T0,
    priority: 0,
    metadata: { project: 'x' },
    request: '{"messages":[]}',
    retention_ms: 86_400_000,
    on_node_loss: 'requeue',
    max_attempts: 3,
    queue_timeout_ms: 86_400_000,
    run_timeout_ms: 600_000,
    idempotency: null,
    traceparent: null,
    reserved_tokens: 100,
    created_at: T0,
    ...over,
  };
}

export function fenceOf({ id, attempt, node, epoch }: JobFence): JobFence {
  return { id, attempt, node, epoch };
}

export function inventoried({ id, attempt }: JobFence): InventoriedJob {
  return { id, attempt, finished: false, wants_request: false };
}

export function aFinish(fence: JobFence, over: Partial<Finish> = {}): Finish {
  return {
    ...fenceOf(fence),
    state: 'succeeded',
    backend: 'ollama',
    outcome: 'succeeded',
    code: null,
    message: null,
    digest: 'd1',
    error_code: null,
    error_message: null,
    result: '{"choices":[]}',
    usage: null,
    provisional: false,
    ...over,
  };
}

export function aRequeue(fence: JobFence, over: Partial<Requeue> = {}): Requeue {
  return {
    ...fenceOf(fence),
    backend: 'ollama',
    outcome: 'node_lost',
    code: 'node_lost',
    message: 'the node was lost',
    delay_ms: 0,
    counts: true,
    digest: null,
    lane: 'lane' in fence && typeof fence.lane === 'string' ? fence.lane : 'lane_1',
    ...over,
  };
}

/** Accepts one job, with what it is to differ in, and leases it to this node at epoch 1. */
export async function leased(
  store: Store,
  over: Partial<DetachedJob> = {},
  node = 'node_a',
): Promise<ClaimedJob> {
  const job = aDetachedJob(over);
  await store.acceptJobs([job]);
  const [claimed] = await claim(store, job.lane, 1, node);
  return claimed!;
}

export function claim(
  store: Store,
  lane: string,
  free: number,
  node = 'node_a',
  epoch = 1,
): Promise<ClaimedJob[]> {
  return store.claimJobs({ replica: 'rep_a', lanes: [{ lane, node, epoch, free }], limit: free });
}
