import { expect, test } from 'vitest';
import { HTTP_HEAD_MAX_BYTES, HttpHeadReader } from './http-head.ts';

const HEAD = 'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Odd:  a: b \r\n\r\n';

function read(...chunks: string[]) {
  const reader = new HttpHeadReader();
  for (const [index, chunk] of chunks.entries()) {
    const found = reader.push(Buffer.from(chunk));
    if (found === undefined) continue;
    if (found === 'broken') return found;
    return { ...found.head, rest: Buffer.from(found.rest).toString() + chunks.slice(index + 1).join('') };
  }
  return undefined;
}

const whole = {
  status: 200,
  headers: { 'content-type': 'text/event-stream', 'x-odd': 'a: b' },
  rest: 'data: 1\n\nHTTP/1.1 404 no\r\n\r\n',
};

test('the head is read wherever the bytes are cut, and the body behind it is left as it is', () => {
  const text = `${HEAD}${whole.rest}`;
  for (let cut = 0; cut <= text.length; cut++) {
    expect(read(text.slice(0, cut), text.slice(cut))).toEqual(whole);
  }
  expect(read(...text.split(''))).toEqual(whole);
});

test('interim answers are passed over; HTTP/2 has no reason, and lines may end with LF alone', () => {
  expect(read(`HTTP/1.1 100 Continue\r\n\r\n${HEAD}${whole.rest}`)).toEqual(whole);
  expect(read('HTTP/2 429 \nretry-after: 3\n\nbusy')).toEqual({
    status: 429,
    headers: { 'retry-after': '3' },
    rest: 'busy',
  });
});

test('what is no head is told at its first bytes, and one without an end once it is too long', () => {
  expect(read('{"id":')).toBe('broken');
  expect(read('HTTP/1.1 OK\r\n\r\n')).toBe('broken');
  expect(read('HTTP/1.1 200 OK\r\n', 'a: b\r\n'.repeat(HTTP_HEAD_MAX_BYTES / 6))).toBe('broken');
  expect(read('HTTP/1.1 200 OK\r\n', 'a: b\r\n')).toBe(undefined);
});
