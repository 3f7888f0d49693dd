import type { IncomingMessage } from 'node:http';
import { describe, expect, test } from 'vitest';
import { clientAddresses, isNetwork } from './client-address.ts';

const from = (remoteAddress: string, forwarded?: string) =>
  ({
    socket: { remoteAddress },
    headers: forwarded === undefined ? {} : { 'x-forwarded-for': forwarded },
  }) as unknown as IncomingMessage;

describe('the address of a client', () => {
  const addressOf = clientAddresses(['10.0.0.0/8', '127.0.0.1', 'fd00::/8']);

  test.each([
    ['is the peer’s, where nothing was forwarded', from('10.0.0.1'), '10.0.0.1'],
    ['is what a trusted proxy says', from('10.0.0.1', '203.0.113.7'), '203.0.113.7'],
    ['is believed of nobody else', from('203.0.113.9', '198.51.100.1'), '203.0.113.9'],
    [
      'is not what the client wrote before its proxy',
      from('10.0.0.1', '127.0.0.1, 203.0.113.7'),
      '203.0.113.7',
    ],
    ['is found behind several trusted proxies', from('127.0.0.1', '203.0.113.7, 10.2.3.4'), '203.0.113.7'],
    ['is the first hop’s, where all are trusted', from('127.0.0.1', '10.9.9.9, 10.2.3.4'), '10.9.9.9'],
    ['is read without a port', from('10.0.0.1', '203.0.113.7:4711'), '203.0.113.7'],
    ['is read out of brackets', from('fd00::1', '[2001:db8::5]:4711'), '2001:db8::5'],
    ['is the proxy’s, where that does not know', from('10.0.0.1', 'unknown'), '10.0.0.1'],
    ['is the same on a socket of both families', from('::ffff:10.0.0.1', '203.0.113.7'), '203.0.113.7'],
  ])('%s', (_name, request, address) => {
    expect(addressOf(request)).toBe(address);
  });

  test('is the peer’s where no proxy is trusted', () => {
    expect(clientAddresses([])(from('::ffff:127.0.0.1', '203.0.113.7'))).toBe('127.0.0.1');
  });

  test.each([
    ['10.0.0.0/8', true],
    ['fd00::/8', true],
    ['192.0.2.1', true],
    ['10.0.0.0/33', false],
    ['10.0.0.0/', false],
    ['proxy.example', false],
    ['10.0.0.0/8/8', false],
  ])('%s as a trusted network: %s', (text, readable) => {
    expect(isNetwork(text)).toBe(readable);
  });
});
