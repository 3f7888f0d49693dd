import { OPERATIONS } from '@flotilla/protocol';
import { z } from 'zod';

/**
 * What two replicas say to each other about attached work: one has the client (the owner), the other the node (the
 * holder). Bodies and answers travel beside these in the frames of the node link, under stream numbers of the channel.
 */
const id = z.string().max(64);
const count = z.number().int().min(0);
const of = { job: id, attempt: count };
const usage = z.object({
  prompt_tokens: count,
  completion_tokens: count,
  cached_tokens: count,
  estimated: z.boolean(),
});

const held = z.object({ ...of, node: id, epoch: count, started: z.boolean() });
const verdict = z.object({
  ...of,
  keep: z.boolean(),
  stream: count,
  acked_offset: count,
  head_received: z.boolean(),
});

const offer = z.object({
  ...of,
  stream: count,
  node: id,
  backend: z.string(),
  model: z.string(),
  operation: z.enum(OPERATIONS),
  streaming: z.boolean(),
  add_usage: z.boolean(),
  body_length: count,
  request_id: z.string(),
  traceparent: z.string().nullable(),
  priority: z.number(),
  labels: z.record(z.string(), z.string()),
});

/** A job that waits for a slot, as whoever has one needs to know it. */
const announcement = z.object({
  job: z.string().max(64),
  key: z.string().max(64),
  model: z.string().max(512),
  operation: z.enum(OPERATIONS),
  labels: z.record(z.string(), z.string()),
  avoid: z.array(z.string()),
  refused_by: z.array(z.string()),
  affinity: z.string().nullable(),
  order_key: z.number(),
  priority: z.number(),
  body_length: count.default(0),
});
const work = z.object({ type: z.literal('work'), jobs: z.array(announcement) });
/** Told to all, or to one on its channel. */
export const workSchema = z.discriminatedUnion('type', [
  work,
  z.object({ type: z.literal('work.gone'), jobs: z.array(id) }),
]);

const peerMessageSchema = z.discriminatedUnion('type', [
  // ── The channel ──
  /** Both begin anew; `answers`: the other side's number that this one answers. What the sender holds for the other. */
  z.object({ type: z.literal('sync'), answers: count, holds: z.array(held) }),
  z.object({ type: z.literal('verdicts'), verdicts: z.array(verdict) }),
  z.object({ type: z.literal('ping') }),
  z.object({ type: z.literal('link.ack'), received: count }),
  z.object({ type: z.literal('credit'), stream: count, acked_offset: count }),
  // ── Holder to owner ──
  /** A slot of this node is free for that job. */
  z.object({
    type: z.literal('claim'),
    job: id,
    node: id,
    epoch: count,
    backend: z.string(),
    model: z.string(),
  }),
  /** The node came back to the sender with these; it holds them if the owner says so. */
  z.object({ type: z.literal('adopt'), node: id, epoch: count, items: z.array(z.object(of)) }),
  z.object({ type: z.literal('accepted'), ...of }),
  z.object({ type: z.literal('started'), ...of }),
  z.object({ type: z.literal('completed'), ...of, status: count, length: count, usage }),
  z.object({
    type: z.literal('failed'),
    ...of,
    code: z.string(),
    message: z.string(),
    retryable: z.boolean(),
    retry_after_ms: z.number().optional(),
  }),
  z.object({ type: z.literal('rejected'), ...of, reason: z.string() }),
  z.object({ type: z.literal('lost'), ...of, message: z.string() }),
  /** The node is linked elsewhere now, with whatever it has. */
  z.object({ type: z.literal('moved'), ...of }),
  // ── Owner to holder ──
  /** The first of what waits. */
  work,
  z.object({ type: z.literal('gone'), job: id }),
  offer.extend({ type: z.literal('offer') }),
  z.object({
    type: z.literal('adopted'),
    node: id,
    kept: z.array(z.object({ offer, acked_offset: count, head_received: z.boolean() })),
    abandoned: z.array(z.object(of)),
  }),
  z.object({ type: z.literal('stop'), ...of, reason: z.string() }),
  /** The result has arrived: the holder may forget what it kept of it. */
  z.object({ type: z.literal('done'), ...of }),
]);

export type PeerMessage = z.infer<typeof peerMessageSchema>;
export type PeerMessageOf<T extends PeerMessage['type']> = Extract<PeerMessage, { type: T }>;
export type Announcement = z.infer<typeof announcement>;
export type Work = z.infer<typeof workSchema>;
export type PeerOffer = z.infer<typeof offer>;
export type HeldForPeer = z.infer<typeof held>;

export function readPeerMessage(bytes: Uint8Array): PeerMessage | undefined {
  try {
    return peerMessageSchema.safeParse(JSON.parse(Buffer.from(bytes).toString())).data;
  } catch {
    return undefined;
  }
}
