import type {
  CredentialRecord,
  DescriptorChange,
  MovedNode,
  NodePatch,
  NodeRecord,
  NodeStateChange,
} from '@flotilla/core';
import { catalogueOutdated } from '@flotilla/core';
import { readDescriptor } from '@flotilla/protocol';
import { lastOfEach } from '../../../packages/control/src/store/save-node-states.ts';
import { notUnique } from './failure.ts';
import { bytewise, type NodeRow, type Tables } from './tables.ts';

const DAY_MS = 86_400_000;

/** Their descriptors as they lie in the store: whoever loads them reads what it has not got. */
export function loadNodes(tables: Tables): NodeRecord[] {
  return [...tables.nodes.values()]
    .sort((a, b) => bytewise(a.id, b.id))
    .map((node) => nodeRecord(tables, node));
}

export function findNode(tables: Tables, id: string): NodeRecord | undefined {
  const node = tables.nodes.get(id);
  return node && readNode(nodeRecord(tables, node));
}

function nodeRecord(tables: Tables, node: NodeRow): NodeRecord {
  const { replica: _replica, changed_at: _changed_at, health: _health, moved: _moved, ...record } = node;
  return {
    ...record,
    labels: structuredClone(node.labels),
    allowed_models: [...node.allowed_models],
    credentials: credentialsOf(tables, node.id),
  };
}

function credentialsOf(tables: Tables, node: string): CredentialRecord[] {
  const since = tables.now_ms() - DAY_MS;
  return [...tables.credentials.values()]
    .filter((one) => one.node === node && (one.expires_at === null || one.expires_at > since))
    .sort((a, b) => bytewise(a.id, b.id))
    .map(({ id, hash, created_at, expires_at }) => ({ id, hash, created_at, expires_at }));
}

/** One whose descriptor is partly unreadable has no hash, so that it is asked for it again. */
export function readNode(node: NodeRecord): NodeRecord {
  if (node.descriptor === null) return node;
  const { descriptor, warnings } = readDescriptor(node.descriptor, node.name);
  return warnings.length === 0 ? { ...node, descriptor } : { ...node, descriptor, descriptor_hash: null };
}

export function addCredential(tables: Tables, node: string, credential: CredentialRecord): void {
  const taken = [...tables.credentials.values()].some(
    ({ id, hash }) => id === credential.id || hash === credential.hash,
  );
  if (taken) throw notUnique('node_credentials', credential.id);
  tables.credentials.set(credential.id, { ...credential, node });
}

export function takeEpochs(tables: Tables, replica: string, nodes: string[]): Map<string, number> {
  const taken = [...new Set(nodes)].flatMap((id) => {
    const node = tables.nodes.get(id);
    return node === undefined || node.state === 'revoked' ? [] : [node];
  });
  if (taken.length > 0) tables.fleet += 1;
  for (const node of taken) {
    tables.nodes.set(node.id, { ...node, epoch: node.epoch + 1, replica, moved: tables.fleet });
  }
  return new Map(taken.map(({ id, epoch }) => [id, epoch + 1]));
}

export function saveNodeStates(tables: Tables, changes: NodeStateChange[]): void {
  const last = lastOfEach(changes).filter(({ id }) => tables.nodes.has(id));
  if (last.length > 0) tables.fleet += 1;
  for (const { id, epoch, state, close_reason, at, last_seen_at, health } of last) {
    const node = tables.nodes.get(id)!;
    if (node.epoch !== epoch || node.state === 'revoked') continue;
    tables.nodes.set(id, {
      ...node,
      state,
      close_reason,
      changed_at: at,
      last_seen_at: latest(node.last_seen_at, last_seen_at ?? null),
      health: health ?? node.health,
      moved: tables.fleet,
    });
  }
}

/** As `greatest` does it: of what is null there is nothing. */
function latest(a: number | null, b: number | null): number | null {
  return a === null || b === null ? (a ?? b) : Math.max(a, b);
}

export function saveDescriptors(tables: Tables, changes: DescriptorChange[]): void {
  const last = lastOfEach(changes).filter(({ id }) => tables.nodes.has(id));
  if (last.length > 0) tables.fleet += 1;
  for (const { id, epoch, descriptor, descriptor_hash } of last) {
    const node = tables.nodes.get(id)!;
    if (node.epoch !== epoch) continue;
    tables.nodes.set(id, { ...node, descriptor, descriptor_hash, moved: tables.fleet });
    const catalogues = tables.catalogues.get(id);
    for (const backend of descriptor.backends) {
      const catalogue = catalogues?.get(backend.id);
      if (catalogue !== undefined && catalogueOutdated(catalogue, backend)) catalogues!.delete(backend.id);
    }
  }
}

export function flushSeen(tables: Tables, seen: { id: string; at: number }[]): void {
  for (const { id, at } of seen) {
    const node = tables.nodes.get(id);
    if (node !== undefined && (node.last_seen_at ?? -Infinity) < at) {
      tables.nodes.set(id, { ...node, last_seen_at: at });
    }
  }
}

/** As `loadNodes` with their descriptors, and the names that these are read with. */
export function movedNodes(
  tables: Tables,
  since: number,
): { fleet: number; nodes: (MovedNode & { name: string })[] } {
  const moved = tables.fleet > since ? [...tables.nodes.values()].filter((node) => node.moved > since) : [];
  const nodes = moved.map((node) => ({
    id: node.id,
    epoch: node.epoch,
    state: node.state,
    replica: node.replica,
    close_reason: node.close_reason,
    health: structuredClone(node.health ?? null),
    descriptor_hash: node.descriptor_hash,
    descriptor: node.descriptor,
    name: node.name,
  }));
  return { fleet: tables.fleet, nodes };
}

export function updateNode(tables: Tables, id: string, patch: NodePatch): NodeRecord | undefined {
  const node = tables.nodes.get(id);
  if (node === undefined) return undefined;
  tables.nodes.set(id, { ...node, ...patch });
  tables.version += 1;
  return findNode(tables, id);
}

export function rotateCredential(
  tables: Tables,
  node: string,
  credential: CredentialRecord,
  old_expires_at: number,
): boolean {
  const row = tables.nodes.get(node);
  const adds = row !== undefined && row.revoked_at === null;
  const old = [...tables.credentials.values()].filter((one) => one.node === node);
  if (adds) addCredential(tables, node, credential);
  for (const one of old) {
    const expires_at = Math.min(one.expires_at ?? old_expires_at, old_expires_at);
    tables.credentials.set(one.id, { ...one, expires_at });
  }
  if (adds) tables.version += 1;
  return adds;
}

export function revokeNode(tables: Tables, id: string, at: number): NodeRecord | undefined {
  const node = tables.nodes.get(id);
  if (node === undefined) return undefined;
  const changed_at = node.state === 'revoked' ? node.changed_at : at;
  tables.nodes.set(id, { ...node, state: 'revoked', changed_at, revoked_at: node.revoked_at ?? at });
  tables.version += 1;
  return findNode(tables, id);
}

export function deleteNode(tables: Tables, id: string): boolean {
  for (const { id: credential, node } of tables.credentials.values()) {
    if (node === id) tables.credentials.delete(credential);
  }
  for (const { id: discovery, node } of tables.discoveries.values()) {
    if (node === id) tables.discoveries.delete(discovery);
  }
  tables.catalogues.delete(id);
  const gone = tables.nodes.delete(id);
  if (gone) tables.version += 1;
  return gone;
}
