import { expect, test } from 'vitest';
import { Mailbox } from './mailbox.ts';

const messages = (letters: readonly { message: string }[]) => letters.map(({ message }) => message);

test('what was not acknowledged is given again, in its order, and what was is not', () => {
  const box = new Mailbox<string>();
  box.post('a');
  box.post('b');
  expect(messages(box.take())).toEqual(['a', 'b']);
  expect(messages(box.take())).toEqual(['a', 'b']);
  expect(messages(box.acknowledge(1))).toEqual(['a']);
  box.post('c');
  expect(messages(box.take())).toEqual(['b', 'c']);
  expect(messages(box.acknowledge(3))).toEqual(['b', 'c']);
  expect(messages(box.acknowledge(3))).toEqual([]);
  expect(box.size).toBe(0);
});

test('what was never given out cannot be acknowledged', () => {
  const box = new Mailbox<string>();
  box.post('a');
  expect(messages(box.acknowledge(9))).toEqual([]);
  expect(box.given).toBe(0);
  expect(messages(box.take())).toEqual(['a']);
  expect(box.given).toBe(1);
});

test('is fresh while it has something that nobody was given', () => {
  const box = new Mailbox<string>();
  expect(box.fresh).toBe(false);
  const letter = box.post('a');
  expect([box.fresh, letter.given]).toEqual([true, false]);
  box.take();
  expect([box.fresh, letter.given]).toEqual([false, true]);
  const second = box.post('b');
  expect(box.fresh).toBe(true);
  box.remove(second);
  expect([box.fresh, box.size]).toEqual([false, 1]);
});
