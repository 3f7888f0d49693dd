import { FRAME_KIND, type Frame } from '@flotilla/protocol';
import type { Kept } from './claims.ts';
import type { PeerMessage, PeerOffer } from './peer-messages.ts';

/**
 * Requests on their way to nodes linked here, from the replicas that have their clients. What was kept for
 * them stays kept meanwhile.
 *
 *     offered ──pieces, each where the last one ended──▶ whole ──▶ held (held.ts)
 *        └── not wanted any more, longer than said, channel broken ──▶ free
 */
export interface Receiving {
  begin(owner: string, offer: PeerOffer, kept: Kept): void;
  frame(owner: string, frame: Frame): void;
  /** It is not wanted any more. */
  refuse(owner: string, of: { job: string; attempt: number }): void;
  broken(owner: string): void;
}

interface Coming {
  offer: PeerOffer;
  kept: Kept;
  parts: Uint8Array[];
  length: number;
  credited: number;
}

const CREDIT_EVERY_BYTES = 64 * 1024;

export function createReceiving(deps: {
  tell: (owner: string, message: PeerMessage) => void;
  /** Gives back what was kept. */
  free(kept: Kept): void;
  /** The request is here; what was kept still is. */
  whole(owner: string, offer: PeerOffer, kept: Kept, body: Uint8Array): void;
}): Receiving {
  /** By owner, and by stream on the channel to it. */
  const coming = new Map<string, Map<number, Coming>>();
  return {
    begin(owner, offer, kept) {
      const of_owner = coming.get(owner) ?? new Map<number, Coming>();
      coming.set(owner, of_owner.set(offer.stream, { offer, kept, parts: [], length: 0, credited: 0 }));
    },
    frame(owner, { kind, stream, offset, payload }) {
      const one = coming.get(owner)?.get(stream);
      if (one === undefined) return;
      if (kind === FRAME_KIND.requestBody) piece(owner, one, offset, payload);
      if (kind !== FRAME_KIND.end || one.length !== one.offer.body_length) return;
      coming.get(owner)!.delete(stream);
      const { offer, kept, parts } = one;
      deps.whole(owner, offer, kept, parts.length === 1 ? parts[0]! : Buffer.concat(parts));
    },
    refuse,
    broken(owner) {
      for (const { kept } of coming.get(owner)?.values() ?? []) deps.free(kept);
      coming.delete(owner);
    },
  };

  function piece(owner: string, one: Coming, offset: number, payload: Uint8Array): void {
    const { job, attempt, stream, body_length } = one.offer;
    if (offset + payload.byteLength > body_length) {
      refuse(owner, one.offer);
      return deps.tell(owner, {
        type: 'lost',
        job,
        attempt,
        message: 'Its request is longer than was said.',
      });
    }
    if (offset !== one.length) return;
    one.parts.push(payload);
    one.length += payload.byteLength;
    if (one.length - one.credited < CREDIT_EVERY_BYTES) return;
    one.credited = one.length;
    deps.tell(owner, { type: 'credit', stream, acked_offset: one.length });
  }

  function refuse(owner: string, of: { job: string; attempt: number }): void {
    for (const [stream, { offer, kept }] of coming.get(owner) ?? []) {
      if (offer.job !== of.job || offer.attempt !== of.attempt) continue;
      coming.get(owner)!.delete(stream);
      deps.free(kept);
    }
  }
}
