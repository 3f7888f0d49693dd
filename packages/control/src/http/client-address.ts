import type { IncomingMessage } from 'node:http';
import { BlockList, isIP } from 'node:net';

/** Where a request comes from: the peer of its socket, or whom a trusted proxy names in its place. */
export type AddressOf = (request: Pick<IncomingMessage, 'headers' | 'socket'>) => string;

/**
 * `X-Forwarded-For` is a list that each proxy appends its peer to, and anybody can begin it with what they like. It is
 * read from its end, for as long as the hop that wrote an entry is one of the trusted networks.
 */
export function clientAddresses(trusted: readonly string[]): AddressOf {
  const networks = new BlockList();
  for (const network of trusted) addNetwork(networks, network);
  return ({ headers, socket }) => {
    let address = bare(socket.remoteAddress ?? '');
    if (trusted.length === 0) return address;
    const hops = String(headers['x-forwarded-for'] ?? '').split(',');
    while (hops.length > 0 && isTrusted(networks, address)) {
      const hop = bare(withoutPort(hops.pop()!.trim()));
      // A proxy that writes what is no address ("unknown") tells no more than its own.
      if (isIP(hop) === 0) break;
      address = hop;
    }
    return address;
  };
}

/** An address, or a network like `10.0.0.0/8` or `fd00::/8`. */
export function isNetwork(text: string): boolean {
  const [address = '', bits, ...more] = text.split('/');
  const family = isIP(address);
  if (family === 0 || more.length > 0) return false;
  return bits === undefined || (/^\d{1,3}$/.test(bits) && Number(bits) <= (family === 4 ? 32 : 128));
}

function addNetwork(networks: BlockList, text: string): void {
  const [address = '', bits] = text.split('/');
  const family = isIP(address) === 4 ? 'ipv4' : 'ipv6';
  if (bits === undefined) networks.addAddress(address, family);
  else networks.addSubnet(address, Number(bits), family);
}

function isTrusted(networks: BlockList, address: string): boolean {
  const family = isIP(address);
  return family !== 0 && networks.check(address, family === 4 ? 'ipv4' : 'ipv6');
}

/** A socket that takes both families shows an IPv4 peer as `::ffff:1.2.3.4`. */
function bare(address: string): string {
  return address.replace(/^::ffff:(?=\d+\.)/i, '').replace(/%.*$/, '');
}

function withoutPort(hop: string): string {
  return /^\[(.*)\](?::\d+)?$/.exec(hop)?.[1] ?? /^(\d+\.\d+\.\d+\.\d+):\d+$/.exec(hop)?.[1] ?? hop;
}
