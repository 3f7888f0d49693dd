import { createCipheriv, createDecipheriv, hkdfSync } from 'node:crypto';
import type { Clock, Log, Random, Store } from '@flotilla/core';
import { makeId } from '@flotilla/protocol';
import { ConfigError } from '../config.ts';

/**
 * Secrets that this control plane must be able to use, and so cannot keep as hashes: sealed with AES-256-GCM under a
 * key made from FLOTILLA_SECRET_KEY, each with a random nonce, and bound to the id of what they belong to, so that a
 * sealed key that is copied into another row does not open there.
 *
 * `v1.<nonce>.<ciphertext and tag>`, base64url.
 */
export interface Sealer {
  seal(secret: string, bound_to: string): string;
  /** @throws Error when it was sealed by another key, for something else, or was changed */
  open(sealed: string, bound_to: string): string;
}

const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const VERSION = 'v1';
const CANARY = 'canary';

export function createSealer(secret_key: string, random: Random): Sealer {
  const key = Buffer.from(hkdfSync('sha256', secret_key, '', 'flotilla seal v1', 32));
  return {
    seal(secret, bound_to) {
      const nonce = random.bytes(NONCE_BYTES);
      const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(Buffer.from(bound_to));
      const sealed = Buffer.concat([cipher.update(secret, 'utf8'), cipher.final(), cipher.getAuthTag()]);
      return `${VERSION}.${Buffer.from(nonce).toString('base64url')}.${sealed.toString('base64url')}`;
    },
    open(sealed, bound_to) {
      const [version, nonce, rest] = sealed.split('.');
      const bytes = Buffer.from(rest ?? '', 'base64url');
      if (version !== VERSION || nonce === undefined || bytes.byteLength < TAG_BYTES) {
        throw new Error('This is no sealed secret.');
      }
      const end = bytes.byteLength - TAG_BYTES;
      const decipher = createDecipheriv('aes-256-gcm', key, Buffer.from(nonce, 'base64url'), {
        authTagLength: TAG_BYTES,
      });
      decipher.setAAD(Buffer.from(bound_to)).setAuthTag(bytes.subarray(end));
      return Buffer.concat([decipher.update(bytes.subarray(0, end)), decipher.final()]).toString('utf8');
    },
  };
}

export interface SealerDeps {
  random: Random;
  clock: Clock;
  log: Log;
  store: Pick<Store, 'secretCanary' | 'loadProviders' | 'resealSecrets' | 'act'>;
}

/**
 * The sealer of this installation, proved against what its first start has sealed: with another key every sealed secret
 * would fail by itself, later, one by one. What the previous key has sealed is sealed anew first: this process is alone
 * on the store, so nobody seals with the old one meanwhile.
 *
 *     canary opens with the key ──▶ the sealer
 *       └─ with the previous one ──canary and secrets sealed anew, in one transaction──▶ the sealer
 *            └─ with neither ──▶ refused, nothing changed
 *
 * @returns null where no secret key is set, and nothing was sealed yet
 * @throws ConfigError
 */
export async function openSealer(
  secret_key: string | undefined,
  previous_key: string | undefined,
  deps: SealerDeps,
): Promise<Sealer | null> {
  const { random, log, store } = deps;
  if (secret_key === undefined) {
    const sealed = (await store.loadProviders()).filter((provider) => provider.key_sealed !== null);
    if (sealed.length === 0) return null;
    throw new ConfigError(
      `FLOTILLA_SECRET_KEY is not set, and the keys of ${sealed.length} providers in this store are sealed with it: ` +
        `set the one that this installation was last started with. \`flotilla up\` keeps it in <data-dir>/secret-key.`,
    );
  }
  const sealer = createSealer(secret_key, random);
  const canary = await store.secretCanary(sealer.seal(CANARY, CANARY));
  if (canary !== null && opens(sealer, canary)) {
    if (previous_key !== undefined)
      log.warn(
        {},
        'FLOTILLA_SECRET_KEY_PREVIOUS has no use: all is sealed with FLOTILLA_SECRET_KEY. Remove it.',
      );
    return sealer;
  }
  const previous = previous_key === undefined ? undefined : createSealer(previous_key, random);
  if (canary === null || previous === undefined || !opens(previous, canary)) {
    const which =
      previous === undefined
        ? 'FLOTILLA_SECRET_KEY is not the one'
        : 'Neither FLOTILLA_SECRET_KEY nor FLOTILLA_SECRET_KEY_PREVIOUS is the one';
    throw new ConfigError(
      `${which} that the secrets in this store were sealed with: set the one that this installation was last started ` +
        'with, as FLOTILLA_SECRET_KEY, or, if another one is to take its place, as FLOTILLA_SECRET_KEY_PREVIOUS. ' +
        '`flotilla up` keeps its own in <data-dir>/secret-key: a store that has come from another data directory needs ' +
        'the file from there. Nothing was changed.',
    );
  }
  await resealAll(previous, sealer, deps);
  return sealer;
}

async function resealAll(
  previous: Sealer,
  sealer: Sealer,
  { random, clock, log, store }: SealerDeps,
): Promise<void> {
  const reseal = (sealed: string, bound_to: string) => {
    let secret: string;
    try {
      secret = previous.open(sealed, bound_to);
    } catch {
      // It did not open before either, and its provider says so: no reason to keep all others under the old key.
      log.error({ provider: bound_to }, 'A key of a provider could not be unsealed, and stays as it is.');
      return sealed;
    }
    return sealer.seal(secret, bound_to);
  };
  const at = clock.wall_ms();
  const id = makeId('audit', at, random.bytes(10));
  const nobody = { key: null, key_name: null, address: null, target: null };
  const record = {
    id,
    at,
    action: 'secret_key.replace',
    outcome: 'succeeded',
    ...nobody,
    change: {},
    request_id: '',
  };
  const secrets = await store.act({ record, keep_refusals: false }, () =>
    store.resealSecrets(sealer.seal(CANARY, CANARY), reseal),
  );
  log.warn(
    { secrets },
    'All is sealed with the new FLOTILLA_SECRET_KEY. Remove FLOTILLA_SECRET_KEY_PREVIOUS.',
  );
}

function opens(sealer: Sealer, canary: string): boolean {
  try {
    return sealer.open(canary, CANARY) === CANARY;
  } catch {
    return false;
  }
}
