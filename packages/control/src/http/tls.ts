import { createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { Server as TlsServer } from 'node:https';
import type { Clock, Log } from '@flotilla/core';
import { type Repeating, repeat } from '../repeat.ts';

/**
 * The certificate of `FLOTILLA_TLS_CERT` and the key of `FLOTILLA_TLS_KEY`: read at start, and again whenever the files
 * have changed. New connections get the new pair; those that are open stay as they are.
 *
 *     in use ──files changed, and fit each other──▶ in use (the new pair)
 *        └── unreadable, or only one of them is new yet ──▶ in use (the old pair; said once) ──▶ read again
 */
export interface TlsFiles {
  cert: string;
  key: string;
}

export interface TlsPair {
  cert: string;
  key: string;
  expires_at: number;
}

/** Says which file is wrong, and how. */
export class TlsError extends Error {
  override readonly name = 'TlsError';
}

/** Files are compared whole, by content: links that are switched and mounts that show no changes are seen as well. */
const CHECK_MS = 2000;
const EXPIRES_SOON_MS = 14 * 86_400_000;

/** No older version is safe, and every client of the last ten years speaks this one. */
export const TLS_MIN_VERSION = 'TLSv1.2';

/** @throws TlsError */
export async function loadTls(files: TlsFiles): Promise<TlsPair> {
  const cert = await readPem('FLOTILLA_TLS_CERT', files.cert);
  const key = await readPem('FLOTILLA_TLS_KEY', files.key);
  return { cert, key, expires_at: checkPair(files, cert, key) };
}

export function warnOfExpiry({ expires_at }: TlsPair, now: number, log: Log): void {
  const until = new Date(expires_at).toISOString();
  if (expires_at <= now)
    log.error({ until }, `The TLS certificate has expired (${until}): clients refuse it.`);
  else if (expires_at - now < EXPIRES_SOON_MS)
    log.warn({ until }, `The TLS certificate expires at ${until}.`);
}

/** @param pair what the server began with */
export function keepTlsFresh(
  server: Pick<TlsServer, 'setSecureContext'>,
  files: TlsFiles,
  pair: TlsPair,
  { clock, log }: { clock: Clock; log: Log },
): Repeating {
  let used = pair;
  let complaint: string | undefined;
  return repeat(clock, () => CHECK_MS, check);

  async function check(): Promise<void> {
    try {
      const found = await loadTls(files);
      complaint = undefined;
      if (found.cert === used.cert && found.key === used.key) return;
      server.setSecureContext({ cert: found.cert, key: found.key, minVersion: TLS_MIN_VERSION });
      used = found;
      log.info({ until: new Date(found.expires_at).toISOString() }, 'The TLS certificate was read anew.');
      warnOfExpiry(found, clock.wall_ms(), log);
    } catch (error) {
      const { message } = error as Error;
      if (message !== complaint)
        log.error({ error }, 'The TLS files cannot be used; the pair read before stays.');
      complaint = message;
    }
  }
}

async function readPem(variable: string, path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    const why =
      code === 'ENOENT'
        ? 'there is no such file'
        : code === 'EACCES'
          ? 'this user may not read it'
          : (cause as Error).message;
    throw new TlsError(`${variable} is ${path}: ${why}.`, { cause });
  }
}

/** @returns when the certificate ends */
function checkPair(files: TlsFiles, cert: string, key: string): number {
  const certificate = parse(
    () => new X509Certificate(cert),
    `FLOTILLA_TLS_CERT is ${files.cert}: that holds no certificate in PEM format ("-----BEGIN CERTIFICATE-----").`,
  );
  const encrypted = /ENCRYPTED/.test(key) ? ' It is protected by a passphrase: give it without one.' : '';
  const secret: KeyObject = parse(
    () => createPrivateKey(key),
    `FLOTILLA_TLS_KEY is ${files.key}: that holds no private key in PEM format that can be used.${encrypted}`,
  );
  if (!certificate.checkPrivateKey(secret)) {
    throw new TlsError(
      `FLOTILLA_TLS_KEY (${files.key}) is not the key of the first certificate in FLOTILLA_TLS_CERT (${files.cert}). ` +
        "The server's own certificate comes first in that file, then those that signed it.",
    );
  }
  return Date.parse(certificate.validTo);
}

function parse<T>(read: () => T, otherwise: string): T {
  try {
    return read();
  } catch (cause) {
    throw new TlsError(otherwise, { cause });
  }
}
