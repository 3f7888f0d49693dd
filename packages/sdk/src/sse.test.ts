import { describe, expect, test } from 'vitest';
import { readEvents, type SseEvent } from './sse.ts';

/** Reads a text that arrives in pieces of the given size. */
async function read(text: string, piece_bytes = text.length): Promise<SseEvent[]> {
  const bytes = new TextEncoder().encode(text);
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      for (let at = 0; at < bytes.length; at += piece_bytes) {
        controller.enqueue(bytes.subarray(at, at + piece_bytes));
      }
      controller.close();
    },
  });
  const events: SseEvent[] = [];
  for await (const event of readEvents(body)) events.push(event);
  return events;
}

describe('an event stream', () => {
  const text =
    ': hello\r\nid: 7\r\ndata: {"a":"ü"}\r\n\r\nevent: end\ndata: one\ndata: two\n\ndata:x\r\rdata: cut';

  test('is read the same however its bytes are split, inside characters and line ends too', async () => {
    const whole = await read(text);
    expect(whole).toEqual([
      { event: 'comment', data: 'hello' },
      { event: 'message', data: '{"a":"ü"}', id: '7' },
      { event: 'end', data: 'one\ntwo', id: '7' },
      { event: 'message', data: 'x', id: '7' },
    ]);
    for (const piece_bytes of [1, 2, 3, 5, 7]) expect(await read(text, piece_bytes)).toEqual(whole);
  });

  test('does not make an event of a last line that no empty line ends', async () => {
    expect(await read('data: half\n')).toEqual([]);
  });

  test('is cancelled when its reader leaves early', async () => {
    let cancelled = false;
    const body = new ReadableStream<Uint8Array>({
      pull: (controller) => controller.enqueue(new TextEncoder().encode('data: again\n\n')),
      cancel: () => {
        cancelled = true;
      },
    });
    for await (const event of readEvents(body)) {
      expect(event.data).toBe('again');
      break;
    }
    expect(cancelled).toBe(true);
  });
});
