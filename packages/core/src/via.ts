/**
 * Which control planes a request has come through. Each adds itself to the `Via` (RFC 9110 §7.6.3) of what it asks a
 * provider, so one that a provider leads back to knows the request again and ends the loop, where it would ask itself for as
 * long as there is a slot. Entries of others are not passed on: they may name machines of whoever sent the request.
 */
const OURS = /^1\.1 (flotilla-[\w-]{1,64})$/;

/** A control plane's name there: it says of no machine where it is. */
export function pseudonymOf(id: string): string {
  return `flotilla-${id}`;
}

/** @returns pseudonyms of control planes, the first that had the request first */
export function cameThrough(via: string | undefined): string[] {
  if (via === undefined) return [];
  return via.split(',').flatMap((entry) => OURS.exec(entry.trim())?.[1] ?? []);
}

export function viaOf(pseudonyms: readonly string[]): string {
  return pseudonyms.map((name) => `1.1 ${name}`).join(', ');
}
