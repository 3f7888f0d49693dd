import { hash } from 'node:crypto';
import type { Random } from '@flotilla/core';
import { CREDENTIAL_PREFIX } from '@flotilla/protocol';

export type CredentialKind = keyof typeof CREDENTIAL_PREFIX;

const SECRET_BYTES = 32;

/** A new secret, shown to its owner once: a prefix that tells what it is, and 256 random bits that tell nothing. */
export function makeCredential(kind: CredentialKind, random: Random): string {
  return CREDENTIAL_PREFIX[kind] + Buffer.from(random.bytes(SECRET_BYTES)).toString('base64url');
}

/**
 * What is kept of a credential: SHA-256, hex. No salt and no slow hash: 256 random bits cannot be guessed from their
 * hash, and the hash is the look-up key. An admin key that a person chose is held to 32 characters for the same reason.
 */
export function hashCredential(credential: string): string {
  return hash('sha256', credential, 'hex');
}
