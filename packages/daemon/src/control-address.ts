import { isThisMachine } from '@flotilla/core';
/**
 * The control plane's address. Over plain http a node's credential and every prompt could be read and changed on the
 * way, so anything but this machine itself must be https unless the operator has said `--insecure`.
 */
export class AddressError extends Error {
  override readonly name = 'AddressError';
}

/** @throws {AddressError} saying what to give instead */
export function controlAddress(given: string, insecure: boolean): URL {
  const url = URL.canParse(given) ? new URL(given) : null;
  if (url === null || !['http:', 'https:'].includes(url.protocol)) {
    throw new AddressError(
      `${JSON.stringify(given)} is no http or https address. Give it like https://flotilla.example:7400.`,
    );
  }
  if (url.username !== '' || url.password !== '') {
    throw new AddressError(
      'The address holds a user or password; a node has a credential of its own. Leave them out.',
    );
  }
  if (url.protocol === 'http:' && !insecure && !isThisMachine(url)) {
    throw new AddressError(
      `${url.origin} is plain http to another machine: whoever is on the way could read and change this node's ` +
        "credential, and every prompt and answer. Give the control plane's https address; or add --insecure if the " +
        'network between is itself private and encrypted (WireGuard, Tailscale).',
    );
  }
  return new URL(`${url.origin}${url.pathname.replace(/\/+$/, '')}`);
}

/** As it is kept and compared: without a trailing slash. */
export function addressText(url: URL): string {
  return url.href.replace(/\/+$/, '');
}
