import type { Enrolment, EnrolmentResult, NodeRecord, TokenRecord } from '@flotilla/core';
import { noteInAct } from './audit.ts';
import { administer } from './config-version.ts';
import { encode } from './json.ts';
import type { Sql } from './sql.ts';

/**
 * One use of a token for one node, or neither. The token's row is locked first, so that callers who race for its last
 * use take turns; a refusal leaves nothing behind.
 */
export async function enrolNode(sql: Sql, enrolment: Enrolment): Promise<EnrolmentResult> {
  return sql.transaction(async (tx) => {
    const [token] = await tx.query<TokenRecord>(
      `select id, labels, allowed_models, max_uses, uses, expires_at from enrolment_tokens where hash = $1 for update`,
      [enrolment.token_hash],
    );
    if (token === undefined) return { refused: 'token_unknown' };
    if (token.expires_at <= enrolment.now) return { refused: 'token_expired' };
    if (token.uses >= token.max_uses) return { refused: 'token_used' };

    noteInAct({ token: token.id });
    // The token's labels outrank the node's: a node cannot drop what its operator put on it.
    const labels = { ...enrolment.labels, ...token.labels };
    const made = await administer(
      tx,
      `insert into nodes (id, name, labels, allowed_models, created_at)
       values ($1, $2, $3::jsonb, $4::jsonb, $5) on conflict (name) do nothing returning id`,
      [enrolment.node, enrolment.name, encode(labels), encode(token.allowed_models), enrolment.now],
    );
    if (made.length === 0) return { refused: 'name_taken' };

    const { credential } = enrolment;
    await tx.query('update enrolment_tokens set uses = uses + 1 where id = $1', [token.id]);
    await tx.query(`insert into node_liveness (node, state, changed_at) values ($1, 'pending', $2)`, [
      enrolment.node,
      enrolment.now,
    ]);
    await tx.query(
      `insert into node_credentials (id, node, hash, created_at, expires_at) values ($1, $2, $3, $4, $5)`,
      [credential.id, enrolment.node, credential.hash, credential.created_at, credential.expires_at],
    );
    return { enrolled: newNode(enrolment, labels, token.allowed_models) };
  });
}

function newNode(
  { node, name, credential, now }: Enrolment,
  labels: NodeRecord['labels'],
  allowed_models: string[],
): NodeRecord {
  return {
    id: node,
    name,
    labels,
    allowed_models,
    state: 'pending',
    cordoned: false,
    drain_deadline_at: null,
    epoch: 0,
    descriptor: null,
    descriptor_hash: null,
    close_reason: null,
    created_at: now,
    last_seen_at: null,
    revoked_at: null,
    credentials: [credential],
  };
}
