import type { Clock } from '@flotilla/core';
import type { ServerResponse } from 'node:http';

/** Cuts the connection when bytes wait in it and none has gone for the stall time. */
export function cutStalled(raw: ServerResponse, clock: Clock, stall_ms: number): { cancel(): void } {
  let sent = -1;
  const look = () => {
    const now_sent = raw.socket?.bytesWritten ?? 0;
    if (raw.writableNeedDrain && now_sent === sent) raw.destroy();
    sent = now_sent;
    timer = clock.after(stall_ms, look);
  };
  let timer = clock.after(stall_ms, look);
  return { cancel: () => timer.cancel() };
}
