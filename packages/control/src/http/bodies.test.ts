import type { FastifyRequest } from 'fastify';
import { EventEmitter } from 'node:events';
import type { IncomingMessage } from 'node:http';
import { PassThrough } from 'node:stream';
import { describe, expect, test, vi } from 'vitest';
import { ManualClock } from '@flotilla/core/testing';
import { createBodyMemory } from '../body-memory.ts';
import { createBodies } from './bodies.ts';

const LIMIT = 1000;

function setup(body_memory_bytes = 10_000) {
  const clock = new ManualClock();
  const memory = createBodyMemory(body_memory_bytes);
  const bodies = createBodies(memory, { client_stall_timeout_ms: 30_000 }, clock);
  const send = (headers: Record<string, string> = {}) => {
    const answer = new EventEmitter();
    const payload = new PassThrough();
    const request = { headers, answer, routeOptions: { bodyLimit: LIMIT } } as unknown as FastifyRequest;
    const body = bodies.read(request, payload as unknown as IncomingMessage);
    body.catch(() => undefined);
    return { answer, payload, body };
  };
  return { clock, memory, send };
}

describe('a body', () => {
  test('is the bytes as they came, in however many pieces', async () => {
    const { send } = setup();
    const { payload, body } = send();
    payload.write(Buffer.from([0, 255]));
    payload.end(Buffer.from([1]));
    expect(await body).toEqual(Buffer.from([0, 255, 1]));
  });

  test('above the limit is refused, declared or not', async () => {
    const { send } = setup();
    const declared = send({ 'content-length': '1001' });
    declared.payload.end(Buffer.alloc(1001));
    await expect(declared.body).rejects.toMatchObject({ code: 'payload_too_large' });
    const found = send();
    found.payload.write(Buffer.alloc(600));
    found.payload.end(Buffer.alloc(401));
    await expect(found.body).rejects.toMatchObject({ code: 'payload_too_large' });
  });

  test('that is refused is read to its end first, so that its sender gets the answer', async () => {
    const { send, clock, memory } = setup();
    const { payload, body } = send({ 'content-length': '5000' });
    const settled = vi.fn<() => void>();
    body.catch(settled);
    payload.write(Buffer.alloc(2500));
    await vi.waitFor(() => expect(payload.readableLength).toBe(0));
    expect(settled).not.toHaveBeenCalled();
    expect(memory.held_bytes).toBe(0);
    payload.end(Buffer.alloc(2500));
    await vi.waitFor(() => expect(settled).toHaveBeenCalled());
    const endless = send({ 'content-length': '5000' });
    clock.advance(2000);
    await expect(endless.body).rejects.toMatchObject({ code: 'payload_too_large' });
  });

  test('that stops coming is given up', async () => {
    const { send, clock } = setup();
    const { payload, body } = send();
    payload.write('a');
    clock.advance(20_000);
    payload.write('b');
    await vi.waitFor(() => expect(payload.readableLength).toBe(0));
    clock.advance(29_000);
    payload.write('c');
    await vi.waitFor(() => expect(payload.readableLength).toBe(0));
    clock.advance(30_000);
    await expect(body).rejects.toMatchObject({ status: 408 });
  });

  test('whose client goes away ends', async () => {
    const { send } = setup();
    const { payload, body } = send();
    payload.destroy();
    await expect(body).rejects.toMatchObject({ code: 'cancelled' });
  });

  test('in an encoding is refused', async () => {
    const { send } = setup();
    const { payload, body } = send({ 'content-encoding': 'gzip' });
    payload.end();
    await expect(body).rejects.toMatchObject({ status: 415 });
  });
});

describe('the memory of all bodies', () => {
  test('is given back when the answer is over, not before', async () => {
    const { memory, send } = setup();
    const { answer, payload, body } = send();
    payload.end(Buffer.alloc(700));
    await body;
    expect(memory.held_bytes).toBe(700);
    answer.emit('close');
    answer.emit('close');
    expect(memory.held_bytes).toBe(0);
  });

  test('is bounded: what does not fit is told to come again', async () => {
    const { send } = setup(1500);
    const first = send();
    first.payload.end(Buffer.alloc(900));
    await first.body;
    const second = send({ 'content-length': '900' });
    second.payload.end(Buffer.alloc(900));
    await expect(second.body).rejects.toMatchObject({
      code: 'unavailable',
      details: { retry_after_ms: 1000 },
    });
    const third = send();
    third.payload.end(Buffer.alloc(900));
    await expect(third.body).rejects.toMatchObject({ code: 'unavailable' });
    third.answer.emit('close');
    first.answer.emit('close');
    const fourth = send();
    fourth.payload.end(Buffer.alloc(900));
    await fourth.body;
  });

  test('is not taken by a length that was only declared', async () => {
    const { memory, send } = setup(1500);
    send({ 'content-length': '1000' });
    send({ 'content-length': '1000' });
    expect(memory.held_bytes).toBe(0);
  });
});
