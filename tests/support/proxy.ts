import { once } from 'node:events';
import { type AddressInfo, type Socket, connect, createServer } from 'node:net';

/** A TCP hop between two real processes, on which the network can be made to fail. */
export interface Proxy {
  readonly port: number;
  readonly url: string;
  /** Every connection is reset, and new ones are refused at once, until `restore`. */
  cut(): void;
  /** Nothing is passed on and nothing is closed: a silent network. */
  blackhole(): void;
  restore(): void;
  /** New connections go there. */
  lead(port: number): void;
  /** Both ways, shared by all connections; Infinity: no limit. */
  limit(bits_per_second: number): void;
  close(): Promise<void>;
}

export async function startProxy(target: { host?: string; port: number }): Promise<Proxy> {
  let { port: far_port } = target;
  let mode: 'pass' | 'cut' | 'silent' = 'pass';
  const sockets = new Set<Socket>();
  const waiting: (() => void)[] = [];
  const lanes = { up: lane(), down: lane() };
  const server = createServer({ allowHalfOpen: true }, (near) => {
    if (mode === 'cut') {
      near.resetAndDestroy();
      return;
    }
    const far = connect({ host: target.host ?? '127.0.0.1', port: far_port, allowHalfOpen: true });
    near.setNoDelay(true);
    far.setNoDelay(true);
    for (const [from, to, way] of [
      [near, far, lanes.up],
      [far, near, lanes.down],
    ] as const) {
      sockets.add(from);
      from.on('data', (bytes: Buffer) => {
        from.pause();
        void pass(bytes, to, way).then(() => from.resume());
      });
      from.on('end', () => void gate().then(() => to.end()));
      from.on('error', () => to.destroy());
      from.on('close', () => {
        sockets.delete(from);
        if (mode !== 'silent') to.destroy();
      });
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;

  return {
    port,
    url: `http://127.0.0.1:${port}`,
    cut() {
      mode = 'cut';
      for (const socket of sockets) socket.resetAndDestroy();
    },
    blackhole() {
      mode = 'silent';
    },
    restore() {
      mode = 'pass';
      for (const go of waiting.splice(0)) go();
    },
    lead(to) {
      far_port = to;
    },
    limit(bits_per_second) {
      lanes.up.bytes_per_ms = lanes.down.bytes_per_ms = bits_per_second / 8000;
    },
    async close() {
      mode = 'pass';
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };

  function gate(): Promise<void> {
    return mode === 'silent' ? new Promise((resolve) => waiting.push(resolve)) : Promise.resolve();
  }

  async function pass(
    bytes: Buffer,
    to: Socket,
    way: { bytes_per_ms: number; free_at_ms: number },
  ): Promise<void> {
    for (let from = 0; from < bytes.length; ) {
      await gate();
      // Small pieces keep a slow line's delay like a real one's.
      const piece = bytes.subarray(from, from + (way.bytes_per_ms === Infinity ? bytes.length : 1500));
      from += piece.length;
      if (way.bytes_per_ms !== Infinity) {
        const now = performance.now();
        way.free_at_ms = Math.max(now, way.free_at_ms) + piece.length / way.bytes_per_ms;
        await new Promise((resolve) => setTimeout(resolve, way.free_at_ms - now));
      }
      if (to.destroyed) return;
      if (!to.write(piece)) await drained(to);
    }
  }
}

function drained(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      socket.off('drain', done).off('close', done);
      resolve();
    };
    socket.on('drain', done).on('close', done);
  });
}

function lane(): { bytes_per_ms: number; free_at_ms: number } {
  return { bytes_per_ms: Infinity, free_at_ms: 0 };
}
