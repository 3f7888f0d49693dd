import { connect } from 'node:net';

/** What came back on a socket on which the test wrote these bytes itself. */
export interface RawReply {
  /** 0: nothing came back. */
  status: number;
  headers: string;
  body: string;
}

/** Writes the bytes as they are and reads until the other side closes. */
export function rawHttp(port: number, ...pieces: (string | Uint8Array)[]): Promise<RawReply> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1');
    const parts: Buffer[] = [];
    socket.on('data', (part) => parts.push(part));
    // A server that has refused what is still being sent may reset the connection; what it said counts.
    socket.on('error', () => undefined);
    socket.on('close', () => {
      clearTimeout(patience);
      resolve(readReply(Buffer.concat(parts).toString('latin1')));
    });
    const patience = setTimeout(() => {
      reject(new Error(`The connection stayed open. It said: ${Buffer.concat(parts).toString('latin1')}`));
      socket.destroy();
    }, 15_000);
    for (const piece of pieces) socket.write(piece);
  });
}

function readReply(text: string): RawReply {
  const status = /^HTTP\/1\.1 (\d{3})/.exec(text)?.[1];
  const end = text.indexOf('\r\n\r\n');
  if (status === undefined || end === -1) return { status: 0, headers: text, body: '' };
  return { status: Number(status), headers: text.slice(0, end).toLowerCase(), body: text.slice(end + 4) };
}
