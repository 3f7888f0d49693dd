import type { IncomingMessage } from 'node:http';
import type { Request } from './answer.ts';

const BODY_BYTES_MAX = 64 * 1024 * 1024;

/** Undefined when the client left before the body was whole, or when it is too long. */
export function readBody(request: IncomingMessage): Promise<Buffer | undefined> {
  return new Promise((resolve) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    request.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes > BODY_BYTES_MAX) request.destroy();
      else chunks.push(chunk);
    });
    request.on('end', () => resolve(chunks.length === 1 ? chunks[0] : Buffer.concat(chunks)));
    request.on('error', () => resolve(undefined));
    request.on('close', () => resolve(undefined));
  });
}

/** Undefined when it is no JSON object. */
export function parseRequest(body: Buffer): Request | undefined {
  try {
    const value: unknown = JSON.parse(body.toString());
    const isObject = typeof value === 'object' && value !== null && !Array.isArray(value);
    return isObject ? (value as Request) : undefined;
  } catch {
    return undefined;
  }
}
