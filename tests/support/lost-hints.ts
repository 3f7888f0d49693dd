import { once } from 'node:events';
import { type AddressInfo, type Socket, connect, createServer } from 'node:net';

/** A way to NATS on which nothing arrives that is told to all replicas at once; what one tells another does. */
export interface LossyNats {
  readonly url: string;
  /** Messages that were dropped. */
  readonly dropped: number;
  close(): Promise<void>;
}

const LINE_END = Buffer.from('\r\n');

export async function startLossyNats(far: { host: string; port: number }): Promise<LossyNats> {
  const sockets = new Set<Socket>();
  let dropped = 0;
  const server = createServer((near) => {
    const to = connect(far);
    let left: Buffer = Buffer.alloc(0);
    near.on('data', (bytes: Buffer) => {
      left = passWhole(Buffer.concat([left, bytes]), to);
    });
    to.pipe(near);
    for (const [own, other] of [
      [near, to],
      [to, near],
    ] as const) {
      sockets.add(own);
      own.setNoDelay(true);
      own.on('error', () => undefined);
      own.on('close', () => {
        sockets.delete(own);
        other.destroy();
      });
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `nats://127.0.0.1:${(server.address() as AddressInfo).port}`,
    get dropped() {
      return dropped;
    },
    async close() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };

  /** @returns what is not whole yet */
  function passWhole(bytes: Buffer, to: Socket): Buffer {
    let at = 0;
    for (;;) {
      const line_end = bytes.indexOf(LINE_END, at);
      if (line_end < 0) return bytes.subarray(at);
      const words = bytes.subarray(at, line_end).toString('latin1').split(/\s+/);
      const publishes = /^H?PUB$/i.test(words[0]!);
      const next = line_end + 2 + (publishes ? Number(words.at(-1)) + 2 : 0);
      if (next > bytes.byteLength) return bytes.subarray(at);
      if (publishes && words[1]!.includes('.all.')) dropped++;
      else to.write(bytes.subarray(at, next));
      at = next;
    }
  }
}
