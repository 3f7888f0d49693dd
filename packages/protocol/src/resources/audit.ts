import { z } from 'zod';
import { time } from './fields.ts';
import { pageQuery } from './paging.ts';

/** The audit log. */

export const auditView = z
  .object({
    id: z.string(),
    at: time,
    action: z
      .string()
      .describe('What was done: `key.create`, `node.drain` and so on; each route says which.'),
    outcome: z.string().describe('`succeeded`, or the code of the refusal.'),
    key: z
      .string()
      .nullable()
      .describe('The id of the key that asked; null: a machine enrolled with a token.'),
    key_name: z.string().nullable().describe('What the key was called then.'),
    address: z.string().nullable().describe('Where the request came from.'),
    target: z.string().nullable().describe('The id of what was acted on.'),
    change: z.record(z.string(), z.unknown()).describe('What was asked for, without secrets.'),
    request_id: z.string(),
  })
  .meta({ id: 'Audit' });
export type AuditView = z.infer<typeof auditView>;
export const auditQuery = pageQuery.extend({
  key: z.string().max(128).optional(),
  action: z.string().max(64).optional(),
  target: z.string().max(256).optional(),
  since: time.optional().describe('From then on.'),
  until: time.optional().describe('Before then.'),
});
