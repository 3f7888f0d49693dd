import { ERROR_CODES, ERRORS } from '@flotilla/protocol';
import { code, page, table } from './markdown.ts';

export function errorsPage(): string {
  const rows = ERROR_CODES.map((name) => {
    const { status, type, retryable, meaning, next } = ERRORS[name];
    return [code(name), String(status), code(type), retryable ? 'yes' : 'no', meaning, next];
  });
  return page('Errors', '`packages/protocol/src/errors.ts`', INTRODUCTION, table(HEAD, rows), STATUSES);
}

const HEAD = ['Code', 'Status', 'Type', 'Try again', 'Meaning', 'What to do'];

const INTRODUCTION = `Every refusal has one shape, OpenAI's, and one of these codes:

\`\`\`json
{ "error": { "message": "…", "type": "rate_limit_error", "code": "queue_full", "param": null } }
\`\`\`

\`param\` names the part of the request at fault. An error that is worth another try comes with \`retry-after\` (seconds)
and \`retry-after-ms\`, every other one with \`x-should-retry: false\`. Once a stream has begun, an error is its last event,
in the same shape, and no \`[DONE]\` follows. The same codes are used on the node link. Those of parts that are still to
come (budgets, agents, nodes over plain HTTP) are listed, so that a client can be ready for them.`;

const STATUSES = `## Statuses of HTTP itself
Clients and proxies act on some statuses by themselves, so these keep their own, with \`invalid_request\` as the code:

${table(
  ['Status', 'When'],
  [
    ['405', 'The path exists, the method does not; `allow` names those that do.'],
    ['408', 'The request, or its next piece, did not arrive in time.'],
    ['415', 'The body is not JSON, or is encoded.'],
    ['417', 'Something else than `100-continue` is expected.'],
    ['426', 'The node link is opened without an upgrade to a WebSocket.'],
    ['431', 'The headers are larger than this server reads.'],
  ],
)}

## Errors of a model server
A 4xx that is about the request (not 401, 403, 404, 408 or 429) goes to the client as the model server sent it: status,
body and all. Its code may be one that is not listed here.`;
