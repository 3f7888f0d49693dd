import { once } from 'node:events';
import { type AddressInfo, type Socket, connect, createServer } from 'node:net';

/** A TCP hop between two real processes, on which the network can be made to fail. */
export interface Proxy {
  readonly port: number;
  readonly url: string;
  /** Every connection is reset, and new ones are refused at once, until `restore`. */
  cut(): void;
  /**
   * Nothing is passed on and nothing is closed: a silent network.
   * @param ways `up`: what the dialling side says is lost, and it still hears the other; half open
   */
  blackhole(ways?: 'both' | Way): void;
  restore(): void;
  /** New connections go there. */
  lead(port: number): void;
  /** Both ways, shared by all connections; Infinity: no limit. */
  limit(bits_per_second: number): void;
  close(): Promise<void>;
}

/** From the dialling side, and to it. */
export type Way = 'up' | 'down';

export async function startProxy(target: { host?: string; port: number }): Promise<Proxy> {
  let { port: far_port } = target;
  let refusing = false;
  const silent = new Set<Way>();
  const sockets = new Set<Socket>();
  const waiting: (() => void)[] = [];
  const lanes = { up: lane(), down: lane() };
  const server = createServer({ allowHalfOpen: true }, (near) => {
    if (refusing) {
      near.resetAndDestroy();
      return;
    }
    const far = connect({ host: target.host ?? '127.0.0.1', port: far_port, allowHalfOpen: true });
    near.setNoDelay(true);
    far.setNoDelay(true);
    for (const [from, to, way] of [
      [near, far, 'up'],
      [far, near, 'down'],
    ] as const) {
      sockets.add(from);
      from.on('data', (bytes: Buffer) => {
        from.pause();
        void pass(bytes, from, to, way).then(() => from.resume());
      });
      from.on('end', () => void gate(way).then(() => to.end()));
      from.on('error', () => undefined); // its close follows
      from.on('close', () => {
        sockets.delete(from);
        if (!silent.has(way)) to.destroy();
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
      refusing = true;
      for (const socket of sockets) socket.resetAndDestroy();
    },
    blackhole(ways = 'both') {
      for (const way of ['up', 'down'] as const) if (ways === 'both' || ways === way) silent.add(way);
    },
    restore() {
      refusing = false;
      silent.clear();
      for (const go of waiting.splice(0)) go();
    },
    lead(to) {
      far_port = to;
    },
    limit(bits_per_second) {
      lanes.up.bytes_per_ms = lanes.down.bytes_per_ms = bits_per_second / 8000;
    },
    async close() {
      silent.clear();
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };

  function gate(way: Way): Promise<void> {
    return silent.has(way) ? new Promise((resolve) => waiting.push(resolve)) : Promise.resolve();
  }

  async function pass(bytes: Buffer, from: Socket, to: Socket, way: Way): Promise<void> {
    const line = lanes[way];
    for (let at = 0; at < bytes.length; ) {
      await gate(way);
      // Small pieces keep a slow line's delay like a real one's.
      const piece = bytes.subarray(at, at + (line.bytes_per_ms === Infinity ? bytes.length : 1500));
      at += piece.length;
      if (line.bytes_per_ms !== Infinity) {
        const now = performance.now();
        line.free_at_ms = Math.max(now, line.free_at_ms) + piece.length / line.bytes_per_ms;
        await new Promise((resolve) => setTimeout(resolve, line.free_at_ms - now));
      }
      // It was closed in the silence: whoever speaks to it now is told so, as by any host.
      if (to.destroyed) return void from.resetAndDestroy();
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
