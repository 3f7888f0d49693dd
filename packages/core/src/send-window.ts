/**
 * The two windows of a link's sender, and the receiver's half of the second, as pure state. All counts are cumulative,
 * so a repeated or late acknowledgement changes nothing.
 *
 * - Stream window: body bytes beyond what the other side has acknowledged; fixed.
 * - Connection window: bytes of binary frames, headers included, beyond what has arrived. It shrinks when beats, or the
 *   frames themselves, are slow, because what waits in front of a beat is what this side has put on the wire. Beats
 *   alone would tell too late: between two of them a window that grows with every acknowledgement may take on more
 *   than the line carries in twice that time.
 *
 * Progress: the receiver acknowledges after every 64 KiB, so at most 64 KiB − 1 stay unacknowledged at rest; the
 * smallest connection window is twice that, and a frame of full size always fits again.
 */
export interface SendWindow {
  readonly sent: number;
  readonly acked: number;
  readonly window: number;
}

export interface ConnectionWindow extends SendWindow {
  /** The last beat took too long: the window does not grow until one is quick again. */
  readonly slow: boolean;
  /** What had been sent when the window was last halved: until that has arrived, frames tell of the larger one. */
  readonly halved_at: number;
}

export const STREAM_WINDOW_BYTES = 256 * 1024;
export const CONNECTION_WINDOW_START_BYTES = 256 * 1024;
export const CONNECTION_WINDOW_MIN_BYTES = 128 * 1024;
export const CONNECTION_WINDOW_MAX_BYTES = 8 * 1024 * 1024;
/** A receiver acknowledges after this much; a sender's window grows by it. */
export const ACK_EVERY_BYTES = 64 * 1024;

export function streamWindow(offset = 0): SendWindow {
  return { sent: offset, acked: offset, window: STREAM_WINDOW_BYTES };
}

export function connectionWindow(): ConnectionWindow {
  return { sent: 0, acked: 0, window: CONNECTION_WINDOW_START_BYTES, slow: false, halved_at: 0 };
}

/** How many bytes may be sent now. */
export function room(window: SendWindow): number {
  return Math.max(0, window.acked + window.window - window.sent);
}

export function unacked(window: SendWindow): number {
  return window.sent - window.acked;
}

/** @throws RangeError when the bytes did not fit: the caller must have asked for `room` */
export function sent<W extends SendWindow>(window: W, bytes: number): W {
  if (bytes > room(window))
    throw new RangeError(`${bytes} bytes overrun a window with room for ${room(window)}.`);
  return { ...window, sent: window.sent + bytes };
}

/** An older acknowledgement changes nothing; one of bytes that were never sent counts for those that were. */
export function acknowledged<W extends SendWindow>(window: W, acked: number): W {
  const now = Math.min(acked, window.sent);
  return now > window.acked ? { ...window, acked: now } : window;
}

/**
 * `link.ack`: frees room. The window grows while frames take an eighth of the heartbeat interval at most and beats are
 * quick; it is halved, once for what was under way, when frames take more than a quarter.
 * @param delay_ms from the sending of the last acknowledged byte to its acknowledgement
 */
export function linkAcknowledged(
  window: ConnectionWindow,
  received: number,
  delay_ms: number,
  heartbeat_ms: number,
): ConnectionWindow {
  const next = acknowledged(window, received);
  if (next === window) return next;
  if (delay_ms > heartbeat_ms / 4) return next.acked > next.halved_at ? halved(next) : next;
  if (window.slow || delay_ms > heartbeat_ms / 8) return next;
  return { ...next, window: Math.min(CONNECTION_WINDOW_MAX_BYTES, next.window + ACK_EVERY_BYTES) };
}

/** A beat came back: halve when it took more than a quarter of the heartbeat interval. */
export function roundTrip(window: ConnectionWindow, rtt_ms: number, heartbeat_ms: number): ConnectionWindow {
  if (rtt_ms <= heartbeat_ms / 4) return window.slow ? { ...window, slow: false } : window;
  return { ...halved(window), slow: true };
}

function halved(window: ConnectionWindow): ConnectionWindow {
  const half = Math.max(CONNECTION_WINDOW_MIN_BYTES, Math.floor(window.window / 2));
  return { ...window, window: half, halved_at: window.sent };
}

/**
 * How long frames are under way. The receiver acknowledges by a rule that the sender knows, so only the frames that
 * will cause an acknowledgement are timed: one in 64 KiB.
 */
export class FrameDelay {
  #sent = 0;
  #told = 0;
  readonly #marks: { bytes: number; sent_ms: number }[] = [];

  sent(bytes: number, now_ms: () => number): void {
    this.#sent += bytes;
    if (this.#sent - this.#told < ACK_EVERY_BYTES) return;
    this.#told = this.#sent;
    this.#marks.push({ bytes: this.#sent, sent_ms: now_ms() });
  }

  /** @returns how long the last of these bytes have taken; 0 where no acknowledgement of them was awaited */
  acknowledged(received: number, now_ms: number): number {
    let delay_ms = 0;
    while (this.#marks.length > 0 && this.#marks[0]!.bytes <= received) {
      delay_ms = now_ms - this.#marks.shift()!.sent_ms;
    }
    return delay_ms;
  }
}

/** The receiving half: tells when an acknowledgement is due. */
export interface ReceiveWindow {
  readonly received: number;
  readonly told: number;
}

export function receiveWindow(offset = 0): ReceiveWindow {
  return { received: offset, told: offset };
}

/** @returns the next state and, when one is due, the cumulative count to acknowledge */
export function received(
  window: ReceiveWindow,
  bytes: number,
): { window: ReceiveWindow; ack: number | undefined } {
  const count = window.received + bytes;
  if (count - window.told < ACK_EVERY_BYTES)
    return { window: { ...window, received: count }, ack: undefined };
  return { window: { received: count, told: count }, ack: count };
}
