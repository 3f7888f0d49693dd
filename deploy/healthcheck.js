// Ends with 0 where the control plane of this container is ready, else with 1: for HEALTHCHECK, and for nothing else.
// With an address it asks there: a node's daemon is ready at http://127.0.0.1:7401/readyz.
import { request as httpRequest } from 'node:http';
import { request as httpsRequest } from 'node:https';

const { FLOTILLA_PORT, PORT, FLOTILLA_TLS_CERT } = process.env;
const own = `${FLOTILLA_TLS_CERT ? 'https' : 'http'}://127.0.0.1:${FLOTILLA_PORT || PORT || 7400}/readyz`;
const url = process.argv[2] ?? own;

// The certificate is for the name that others use, not for loopback; nothing secret is sent, and nothing is believed
// but the status.
const call = url.startsWith('https:') ? httpsRequest : httpRequest;
call(url, { rejectUnauthorized: false, timeout: 5000 }, (reply) => {
  process.exit(reply.statusCode === 200 ? 0 : 1);
})
  .on('timeout', () => process.exit(1))
  .on('error', () => process.exit(1))
  .end();
