/** A way out (a proxy) and a private way (TLS) are for other machines: what is sent to this one leaves it by no wire. */
export function isThisMachine({ hostname }: URL): boolean {
  return hostname === 'localhost' || hostname === '[::1]' || /^127\.\d+\.\d+\.\d+$/.test(hostname);
}
