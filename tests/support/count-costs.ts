import { Worker } from 'node:worker_threads';
import pg from 'pg';

/**
 * Loaded before a control plane (`--import`): counts the statements that it sends to its store, by name, and the bytes that
 * it copies from one buffer, or into one, by itself. On SIGUSR2 it says what came together since the last time.
 */
export interface Costs {
  statements: Record<string, number>;
  /** Of pieces of 4 KiB and more: bodies, not heads and frames. */
  copied_bytes: number;
}

const BODY_BYTES = 4096;
let statements: Record<string, number> = {};
let copied_bytes = 0;

function sent(name: string | undefined, text: string): void {
  const label = name || text.trim().slice(0, 40);
  statements[label] = (statements[label] ?? 0) + 1;
}

function copied(bytes: number): void {
  if (bytes >= BODY_BYTES) copied_bytes += bytes;
}

/** Calls the original after it was looked at. */
function watch<T extends object>(
  target: T,
  method: keyof T,
  look: (self: unknown, given: unknown[]) => void,
): void {
  const original = target[method] as (...given: unknown[]) => unknown;
  target[method] = function (this: unknown, ...given: unknown[]) {
    look(this, given);
    return Reflect.apply(original, this, given) as unknown;
  } as T[keyof T];
}

watch(Worker.prototype, 'postMessage', (_worker, [message]) => {
  const work = message as { do?: string; name?: string; text?: string };
  if (work.do === 'query') sent(work.name, work.text!);
});
watch(pg.Client.prototype, 'query', (_client, [query]) => {
  const { name, text } = query as { name?: string; text?: string };
  if (typeof text === 'string') sent(name, text);
});

const sizeOf = (value: unknown) => (ArrayBuffer.isView(value) ? value.byteLength : 0);
const typed = Object.getPrototypeOf(Uint8Array.prototype) as Uint8Array;
watch(Buffer, 'concat', (_class, [list]) => {
  for (const piece of list as unknown[]) copied(sizeOf(piece));
});
watch(Buffer, 'from', (_class, [value]) => copied(sizeOf(value)));
watch(Uint8Array, 'from', (_class, [value]) => copied(sizeOf(value)));
watch(Buffer.prototype, 'copy', (self) => copied(sizeOf(self)));
watch(typed, 'set', (_self, [value]) => copied(sizeOf(value)));
watch(typed, 'slice', (self, [from = 0, to]) => {
  const size = sizeOf(self);
  copied(Math.max(0, Number(to ?? size) - Number(from)));
});
for (const text of ['toString', 'utf8Slice', 'latin1Slice'] as const) {
  if (text in Buffer.prototype)
    watch(Buffer.prototype, text as 'toString', (self, given) => {
      const [from, to] = text === 'toString' ? [given[1], given[2]] : given;
      copied(Number(to ?? sizeOf(self)) - Number(from ?? 0));
    });
}

process.on('SIGUSR2', () => {
  process.stderr.write(`costs ${JSON.stringify({ statements, copied_bytes } satisfies Costs)}\n`);
  statements = {};
  copied_bytes = 0;
});
