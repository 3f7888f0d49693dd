/**
 * What replicas say to each other. Nothing on it is the truth: a message may be lost, and what it would have told is
 * found in the store later. Of one sender, what arrives arrives in order.
 */
export interface Bus {
  /** Whether messages go out now; those said meanwhile are dropped. */
  readonly connected: boolean;
  /** To every other replica. */
  tell(data: Uint8Array): void;
  /** To one. */
  send(replica: string, data: Uint8Array): void;
  /** Who hears what comes; one listener, for good. */
  listen(listener: BusListener): void;
  close(): Promise<void>;
}

export interface BusListener {
  told(from: string, data: Uint8Array): void;
  sent(from: string, data: Uint8Array): void;
  /** Messages may have been lost before each of these. */
  connected(): void;
  disconnected(): void;
}
