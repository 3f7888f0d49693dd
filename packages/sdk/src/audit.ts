import { Listing } from './listing.ts';
import type { Item, Query } from './routes.ts';
import type { CallOptions, Transport } from './transport.ts';

export type AuditEntry = Item<'listAudit'>;

/** Acts of administration: who did what, when and from where. */
export class Audit {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** Newest first. */
  list(query: Query<'listAudit'> = {}, options: CallOptions = {}): Listing<AuditEntry> {
    return new Listing((cursor) =>
      this.#transport.call('listAudit', { ...options, query: { ...query, ...cursor } }),
    );
  }
}
