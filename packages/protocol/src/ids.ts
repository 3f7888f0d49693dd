/**
 * Public ids: `<prefix>_<26 Crockford base32 characters of a UUIDv7>`.
 * They sort by creation time (RFC 9562 §5.7) and carry no secret: a credential is never derived from an id.
 */
const ALPHABET = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';

/** What an id may name. The prefix makes a pasted id tell what it is. */
export const ID_PREFIXES = {
  job: 'job',
  node: 'node',
  key: 'key',
  enrolmentToken: 'enr',
  credential: 'cred',
  provider: 'prv',
  route: 'rte',
  replica: 'rep',
  boot: 'boot',
  request: 'req',
  audit: 'aud',
  discovery: 'disc',
} as const;
export type IdKind = keyof typeof ID_PREFIXES;

const ID_PATTERN = /^[a-z]+_[0-9A-HJKMNP-TV-Z]{26}$/;

export function isId(kind: IdKind, value: string): boolean {
  return value.startsWith(`${ID_PREFIXES[kind]}_`) && ID_PATTERN.test(value);
}

/** Encodes 16 bytes as 26 base32 characters, most significant bit first (the first character holds 3 bits). */
export function encodeBase32(bytes: Uint8Array): string {
  const codes: number[] = [];
  let buffer = 0;
  let bits = 2; // 130 bits in 26 characters: two leading zero bits
  for (const byte of bytes) {
    buffer = (buffer << 8) | byte;
    bits += 8;
    while (bits >= 5) {
      bits -= 5;
      codes.push(ALPHABET.charCodeAt((buffer >>> bits) & 31));
    }
    buffer &= (1 << bits) - 1;
  }
  // At once: text that grows by a character is many texts.
  return String.fromCharCode(...codes);
}

/**
 * Makes an id from the wall clock and 10 random bytes, both passed in so that a simulation can repeat them.
 * @param wall_ms milliseconds since the epoch
 */
export function makeId(kind: IdKind, wall_ms: number, random: Uint8Array): string {
  const bytes = new Uint8Array(16);
  let rest = wall_ms;
  for (let index = 5; index >= 0; index--) {
    bytes[index] = rest % 256;
    rest = Math.floor(rest / 256);
  }
  bytes.set(random.subarray(0, 10), 6);
  bytes[6] = (bytes[6]! & 0x0f) | 0x70;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  return `${ID_PREFIXES[kind]}_${encodeBase32(bytes)}`;
}
