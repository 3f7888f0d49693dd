import type {
  Enrolment,
  EnrolmentResult,
  KeyPatch,
  KeyRecord,
  Page,
  PageRequest,
  TokenRecord,
} from '@flotilla/core';
import { pageOf } from '../../../packages/control/src/store/paging.ts';
import { notUnique } from './failure.ts';
import { addCredential, findNode } from './nodes.ts';
import { bytewise, type Tables } from './tables.ts';

export function loadKeys(tables: Tables): KeyRecord[] {
  return [...tables.keys.values()].sort((a, b) => bytewise(a.id, b.id)).map((key) => structuredClone(key));
}

export function insertKey(tables: Tables, key: KeyRecord): void {
  const taken = [...tables.keys.values()].some(({ id, hash }) => id === key.id || hash === key.hash);
  if (taken) throw notUnique('api_keys', key.id);
  tables.keys.set(key.id, key);
  tables.version += 1;
}

export function updateKey(tables: Tables, id: string, patch: KeyPatch): KeyRecord | undefined {
  return changeKey(tables, id, () => patch);
}

export function revokeKey(tables: Tables, id: string, at: number): KeyRecord | undefined {
  return changeKey(tables, id, ({ revoked_at }) => ({ revoked_at: revoked_at ?? at }));
}

function changeKey(
  tables: Tables,
  id: string,
  change: (key: KeyRecord) => Partial<KeyRecord>,
): KeyRecord | undefined {
  const key = tables.keys.get(id);
  if (key === undefined) return undefined;
  const changed = { ...key, ...change(key) };
  tables.keys.set(id, changed);
  tables.version += 1;
  return structuredClone(changed);
}

export function touchKeys(tables: Tables, used: { id: string; at: number }[]): void {
  for (const { id, at } of used) {
    const key = tables.keys.get(id);
    if (key !== undefined && (key.last_used_at ?? -Infinity) < at) {
      tables.keys.set(id, { ...key, last_used_at: at });
    }
  }
}

export function insertToken(tables: Tables, token: TokenRecord): void {
  const taken = [...tables.tokens.values()].some(({ id, hash }) => id === token.id || hash === token.hash);
  if (taken) throw notUnique('enrolment_tokens', token.id);
  tables.tokens.set(token.id, token);
  tables.version += 1;
}

export function listTokens(tables: Tables, { limit, after }: PageRequest, now: number): Page<TokenRecord> {
  const rows = [...tables.tokens.values()]
    .filter(({ id, expires_at, uses, max_uses }) => {
      return expires_at > now && uses < max_uses && (after === undefined || id < after);
    })
    .sort((a, b) => bytewise(b.id, a.id))
    .slice(0, limit + 1)
    .map((token) => structuredClone(token));
  return pageOf(rows, limit, ({ id }) => id);
}

export function deleteToken(tables: Tables, id: string): boolean {
  const gone = tables.tokens.delete(id);
  if (gone) tables.version += 1;
  return gone;
}

export function enrolNode(tables: Tables, enrolment: Enrolment): EnrolmentResult {
  const { token_hash, node, name, credential, now } = enrolment;
  const token = [...tables.tokens.values()].find(({ hash }) => hash === token_hash);
  if (token === undefined) return { refused: 'token_unknown' };
  if (token.expires_at <= now) return { refused: 'token_expired' };
  if (token.uses >= token.max_uses) return { refused: 'token_used' };
  if ([...tables.nodes.values()].some((other) => other.name === name)) return { refused: 'name_taken' };
  if (tables.nodes.has(node)) throw notUnique('nodes', node);
  addCredential(tables, node, credential);
  tables.tokens.set(token.id, { ...token, uses: token.uses + 1 });
  tables.nodes.set(node, {
    id: node,
    name,
    labels: { ...enrolment.labels, ...token.labels },
    allowed_models: token.allowed_models,
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
    replica: null,
    changed_at: now,
    health: null,
    moved: 0,
  });
  tables.version += 1;
  return { enrolled: { ...findNode(tables, node)!, credentials: [credential] } };
}
