import { randomFillSync } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { Agent as HttpsAgent } from 'node:https';
import type { Socket } from 'node:net';
import { CERTIFICATE_FAULT, isThisMachine, type LinkPort, linkWrites, type LinkWrites } from '@flotilla/core';
import { MESSAGE_MAX_BYTES } from '@flotilla/protocol';
import { WebSocket } from 'ws';
import type { Ending } from './refusal.ts';

/**
 * One WebSocket to the control plane.
 *
 *     dialling ──opened──▶ open ──▶ ended (said once, with everything known about why)
 *         └────────────────────────▲ refused, unreachable, too slow
 *
 * What is sent within one turn of the event loop leaves in few writes (core/src/link-writes.ts). Backends answer many
 * requests at once; while the first of them travel, the others are read.
 */
export interface ConnectionEvents {
  opened(): void;
  text(text: string): void;
  frame(bytes: Buffer): void;
  ended(ending: Ending): void;
}

export interface ConnectionOptions {
  /** The control plane's address; its path prefix is kept. */
  control_url: string;
  credential: string;
  user_agent: string;
  connect_timeout_ms: number;
}

const LINK_PATH = 'node/v1/link';
const REFUSAL_MAX_BYTES = 16 * 1024;
/** How long patient text waits: a write costs more than all else of a small answer, and most backends think longer. */
const PATIENCE_MS = 5;
/** How long a closing handshake may take before the socket is simply dropped. */
const CLOSE_TIMEOUT_MS = 1000;

/** What a session needs of it. */
export interface LinkConnection extends LinkPort {
  readonly open: boolean;
  /** The control plane said `error`: it explains the close that follows. */
  noteError(code: string, message: string): void;
  /** An orderly close. */
  close(code: number, reason: string): void;
  /** Drops the socket at once; whoever is at the other end may be gone. */
  drop(reason: string): void;
}

/** Tells nothing before it has returned. */
export type Dial = (options: ConnectionOptions, events: ConnectionEvents) => LinkConnection;

export class Connection implements LinkConnection {
  readonly #ws: WebSocket;
  readonly #events: ConnectionEvents;
  #writes: LinkWrites | null = null;
  #patient: string[] = [];
  #patience: NodeJS.Timeout | null = null;
  #ending: Ending = {};
  #ended = false;

  constructor(options: ConnectionOptions, events: ConnectionEvents) {
    this.#events = events;
    const url = linkUrl(options.control_url);
    const agent = proxyAgent(url);
    const mask = needsMask(url) ? randomFillSync : zeroMask;
    this.#ws = new WebSocket(url, {
      headers: { authorization: `Bearer ${options.credential}`, 'user-agent': options.user_agent },
      perMessageDeflate: false,
      handshakeTimeout: options.connect_timeout_ms,
      maxPayload: MESSAGE_MAX_BYTES,
      followRedirects: false,
      generateMask: mask,
      ...(agent === undefined ? {} : { agent }),
    });
    this.#ws.on('upgrade', (response) => {
      this.#writes = writesOn(response.socket, mask);
    });
    this.#ws.on('open', () => events.opened());
    this.#ws.on('message', (raw, binary) => {
      if (this.#ended) return;
      // `binaryType` stays `nodebuffer`.
      const data = raw as Buffer;
      if (binary) events.frame(data);
      else events.text(data.toString('utf8'));
    });
    this.#ws.on('unexpected-response', (request, response) => {
      request.on('error', () => undefined);
      this.#ending.http_status = response.statusCode ?? 0;
      void readRefusal(response).then((refusal) => {
        this.#ending = { ...this.#ending, ...refusal };
        this.#end();
        request.destroy();
      });
    });
    this.#ws.on('error', (error: Error & { code?: string }) => {
      this.#ending.error ??= networkSentence(error);
    });
    this.#ws.on('close', (code, reason) => {
      this.#ending.close_code ??= code;
      this.#ending.close_reason ??= reason.toString('utf8');
      this.#end();
    });
  }

  get open(): boolean {
    return this.#ws.readyState === WebSocket.OPEN;
  }

  sendText(text: string): void {
    if (!this.open) return;
    this.#flushPatient();
    this.#writes?.text(text);
  }

  /** Text that may wait a moment for something to travel with; it keeps its place before whatever follows. */
  sendPatiently(text: string): void {
    if (!this.open) return;
    this.#patient.push(text);
    if (this.#patience !== null) return;
    // One timer for all: what comes while it runs waits less.
    this.#patience = setTimeout(() => {
      this.#patience = null;
      this.#flushPatient();
    }, PATIENCE_MS);
  }

  #flushPatient(): void {
    if (this.#patient.length === 0) return;
    const waiting = this.#patient;
    this.#patient = [];
    if (!this.open) return;
    for (const text of waiting) this.#writes?.text(text);
  }

  sendBinary(header: Uint8Array, payload: Uint8Array): void {
    if (!this.open) return;
    this.#flushPatient();
    this.#writes?.binary(header, payload);
  }

  noteError(code: string, message: string): void {
    this.#ending.said = { code, message };
  }

  close(code: number, reason: string): void {
    this.#flushPatient();
    this.#writes?.flush();
    this.#ws.close(code, reason);
    setTimeout(() => this.#ws.terminate(), CLOSE_TIMEOUT_MS).unref();
  }

  drop(reason: string): void {
    this.#ending.error = reason;
    this.#ws.terminate();
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#events.ended(this.#ending);
  }
}

function linkUrl(control_url: string): URL {
  const base = control_url.endsWith('/') ? control_url : `${control_url}/`;
  const url = new URL(LINK_PATH, base);
  url.protocol = url.protocol === 'https:' || url.protocol === 'wss:' ? 'wss:' : 'ws:';
  return url;
}

/**
 * Masking keeps a proxy between browser and server from being fed bytes of a page's choice. Inside TLS, and on this
 * machine, no proxy reads the frames, and masking in JavaScript costs more than all the rest of a large answer (3 ns a
 * byte here, 2 ns there, as measured): there the mask is zero, which ws sends and reads without touching the payload.
 * docs/decisions/007-zero-mask.md says why that is safe.
 */
function needsMask(url: URL): boolean {
  return url.protocol !== 'wss:' && !/^(?:localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(url.hostname);
}

function zeroMask(mask: Uint8Array): void {
  mask.fill(0);
}

function writesOn(socket: Socket, mask: (key: Uint8Array) => void): LinkWrites {
  return linkWrites({
    write(bytes) {
      if (socket.writable) socket.write(bytes);
    },
    turnEnd: setImmediate,
    mask,
  });
}

/** Through `HTTPS_PROXY` where one is set; plain links, and those to this machine, need no way out. */
function proxyAgent(url: URL): HttpsAgent | undefined {
  const proxy = process.env['https_proxy'] || process.env['HTTPS_PROXY'];
  if (url.protocol !== 'wss:' || isThisMachine(url) || !proxy) return undefined;
  return new HttpsAgent({ proxyEnv: process.env });
}

async function readRefusal(response: IncomingMessage): Promise<Ending> {
  let text = '';
  try {
    response.setEncoding('utf8');
    for await (const piece of response) {
      text += piece as string;
      if (text.length > REFUSAL_MAX_BYTES) break;
    }
    const { error } = JSON.parse(text) as { error?: { code?: unknown; message?: unknown } };
    if (typeof error?.code === 'string' && typeof error.message === 'string') {
      return { http_error: { code: error.code, message: error.message.slice(0, 1000) } };
    }
  } catch {
    // Not ours, or cut off: the status alone has to do.
  }
  return {};
}

function networkSentence(error: Error & { code?: string }): string {
  switch (error.code) {
    case 'ECONNREFUSED':
      return 'The control plane refused the connection.';
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return "The control plane's host name could not be looked up.";
    case 'ECONNRESET':
      return 'The connection was reset.';
    default:
      if (CERTIFICATE_FAULT.test(error.code ?? '')) {
        return (
          `The control plane's certificate is not trusted (${error.code}): if it is signed by an authority of your own, ` +
          "give that one's certificate in NODE_EXTRA_CA_CERTS."
        );
      }
      return `The connection failed: ${error.message}`;
  }
}
