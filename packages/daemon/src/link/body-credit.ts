import { received, type ReceiveWindow, receiveWindow } from '@flotilla/core';

/** When the sender of a request body is told how much of it has arrived, stream by stream, on one connection. */
export class BodyCredit {
  readonly #streams = new Map<number, ReceiveWindow>();

  /** @returns the offset to acknowledge, when that is due */
  taken(stream: number, body_received: number): number | undefined {
    const window = this.#streams.get(stream) ?? receiveWindow();
    const next = received(window, body_received - window.received);
    this.#streams.set(stream, next.window);
    return next.ack;
  }

  forget(stream: number): void {
    this.#streams.delete(stream);
  }
}
