import type { Descriptor } from '@flotilla/protocol';
import { makeId } from '@flotilla/protocol';
import fc from 'fast-check';
import { type Call, call, once, START } from './store-calls.ts';
import type { Database } from './store/database.ts';

const DAY_MS = 86_400_000;
const ids = (kind: 'node' | 'enrolmentToken' | 'credential' | 'discovery', count: number) =>
  Array.from({ length: count }, (_, n) => makeId(kind, START + n, new Uint8Array(10)));
const NODES = ids('node', 3);
const node = fc.constantFrom(...NODES);
const TOKENS = ids('enrolmentToken', 2);
const token = fc.constantFrom(...TOKENS);
const at = fc.constantFrom(START - 2 * DAY_MS, START, START + 40);
const limit = fc.constantFrom(1, 100);
const batch = <T>(item: fc.Arbitrary<T>) => fc.array(item, { minLength: 1, maxLength: 3 });

const aCredential = (n: number, expires_at: number | null) => ({
  id: makeId('credential', START + n, new Uint8Array(10)),
  hash: `hash ${n}`,
  created_at: START,
  expires_at,
});
const credential = fc
  .record({ n: fc.nat(5), expires_at: fc.option(at) })
  .map(({ n, expires_at }) => aCredential(n, expires_at));

const aToken = (id: string) => ({
  id,
  hash: `of ${id}`,
  labels: { site: 'x' },
  allowed_models: ['m'],
  uses: 0,
  created_at: START,
});
const insertToken = call(
  'insertToken',
  fc.record({ id: token, max_uses: fc.constantFrom(1, 3), expires_at: at }),
  (told) => [{ ...aToken(told.id), ...told }],
);
const enrolNode = call(
  'enrolNode',
  fc.record({ token, node, name: fc.constantFrom('one', 'two', 'three'), credential }),
  ({ token: of, ...told }, { tables }) => [
    { ...told, token_hash: `of ${of}`, labels: { site: 'y', gpu: 'yes' }, now: tables.now_ms() },
  ],
);

/** The epoch that counts, or another one. */
const off = fc.constantFrom(0, 0, 0, -1, 1);
const epochOf = ({ tables }: Database, id: string, by: number) =>
  Math.max(0, (tables.nodes.get(id)?.epoch ?? 0) + by);

const saveNodeStates = call(
  'saveNodeStates',
  batch(
    fc.record({
      id: node,
      off,
      state: fc.constantFrom('online', 'suspect', 'offline'),
      close_reason: fc.constantFrom(null, 'cut'),
      health: fc.constantFrom(undefined, [], [{ backend: 'b', health: 'down' }]),
      last_seen_at: fc.oneof(fc.constantFrom(undefined, null), at),
      at,
    }),
  ),
  (told, database) => [
    told.map(({ off: by, ...change }) => ({ ...change, epoch: epochOf(database, change.id, by) })),
  ],
);

const DESCRIPTORS: { descriptor: Descriptor; descriptor_hash: string }[] = ['1', '2'].map((version) => ({
  descriptor: {
    name: 'box',
    labels: {},
    version,
    pools: [],
    backends: [{ id: 'b', kind: 'ollama', version, pool: 'p', models: [] }],
  },
  descriptor_hash: `h${version}`,
}));
const PARTLY_READABLE = {
  descriptor: { ...DESCRIPTORS[0]!.descriptor, pools: [{ id: 'p' }] },
  descriptor_hash: 'h3',
};
const saveDescriptors = call(
  'saveDescriptors',
  batch(fc.record({ id: node, off, of: fc.constantFrom(...DESCRIPTORS, PARTLY_READABLE) })),
  (told, database) => [told.map(({ id, off: by, of }) => ({ id, epoch: epochOf(database, id, by), ...of }))],
);
/** Which descriptors the caller has. */
const known = fc.subarray(['h1', 'h2']).map((hashes) => (_node: string, hash: string) => {
  return hashes.includes(hash) ? DESCRIPTORS[0]!.descriptor : undefined;
});

const patch = fc.record(
  {
    labels: fc.constant({ site: 'z' }),
    allowed_models: fc.constant([]),
    cordoned: fc.boolean(),
    drain_deadline_at: fc.option(at),
  },
  { requiredKeys: [] },
);

const discovery = fc.constantFrom(...ids('discovery', 4));
const backend = fc.constantFrom(null, 'b');
const stage = fc.constantFrom('claimed', 'connecting', 'listing');
const listed = (of: string, version?: string) => ({
  outcome: 'listed',
  backend: of,
  kind: 'ollama',
  version,
  models: [],
  models_total: 0,
});
const openDiscovery = call(
  'openDiscovery',
  fc.record({
    id: discovery,
    node,
    backend,
    timeout_ms: fc.constantFrom(0, 50),
    refused: fc.constantFrom(null, null, 'offline', 'unsupported'),
  }),
);
/** Of the node that has it, or of any. */
const ownerOf = ({ tables }: Database, id: string, other: string | null) =>
  other ?? tables.discoveries.get(id)?.node ?? NODES[0]!;
const stranger = fc.constantFrom(null, null, null, ...NODES);
const noteDiscoveries = call(
  'noteDiscoveries',
  batch(fc.record({ id: discovery, stranger, stage, waiting_for: backend })),
  (told, database) => [
    once(told, ({ id }) => id).map(({ stranger: other, ...note }) => ({
      ...note,
      node: ownerOf(database, note.id, other),
    })),
  ],
);
const finishDiscovery = call(
  'finishDiscovery',
  fc.record({
    id: discovery,
    stranger,
    state: fc.constantFrom('completed', 'failed'),
    reason: fc.constantFrom(null, 'backend_down'),
    stage: fc.option(stage, { freq: 1 }),
    waiting_for: backend,
    results: fc.constantFrom([], [listed('b', '1')], [listed('b', '2'), listed('c')], [listed('b')]),
  }),
  ({ stranger: other, ...end }, database) => [{ ...end, node: ownerOf(database, end.id, other) }],
);

const CALLS: [number, fc.Arbitrary<Call>][] = [
  [1, insertToken],
  [1, call('deleteToken', token)],
  [2, call('listTokens', fc.record({ limit, now: at }), (told) => [{ limit: told.limit }, told.now])],
  [3, enrolNode],
  [
    6,
    call(
      'takeEpochs',
      fc.record({ replica: fc.constantFrom('rep_a', 'rep_b'), nodes: batch(node) }),
      (told) => [told.replica, told.nodes],
    ),
  ],
  [8, saveNodeStates],
  [7, saveDescriptors],
  [2, call('flushSeen', batch(fc.record({ id: node, at })))],
  [
    4,
    call(
      'movedNodes',
      fc.record({ since: fc.nat(12), known }),
      (told) => [told.since, told.known],
      'unordered',
    ),
  ],
  [4, call('loadNodes', known)],
  [2, call('updateNode', fc.record({ node, patch }), (told) => [told.node, told.patch])],
  [
    2,
    call('rotateCredential', fc.record({ node, credential, at }), (told) => [
      told.node,
      told.credential,
      told.at,
    ]),
  ],
  [2, call('revokeNode', fc.record({ node, at }), (told) => [told.node, told.at])],
  [1, call('deleteNode', node)],
  [1, call('configVersion', fc.constant(null), () => [])],
  [1, call('enterReplica', fc.boolean(), (bus) => ['rep_a', bus])],
  [1, call('bumpReplica', fc.constantFrom('rep_a', 'rep_b'))],
  [1, call('endReplica', fc.constantFrom('rep_a', 'rep_b'))],
  [1, call('listReplicas', fc.constant(null), () => [])],
  [8, openDiscovery],
  [6, noteDiscoveries],
  [8, finishDiscovery],
  [2, call('openDiscoveries', fc.constant(100), undefined, 'unordered')],
  [1, call('findDiscovery', discovery)],
  [3, call('loadCatalogues', node)],
  [
    1,
    call('sweep', fc.constantFrom(0, DAY_MS, 3 * DAY_MS), (late_ms) => [
      { jobs_ms: 0, usage_ms: 0, audit_ms: 0, batch: 100 },
      START + late_ms,
    ]),
  ],
  [4, call('wait', fc.constantFrom(1, 50, 999, 1000, DAY_MS))],
];

/** Two nodes that are linked; a third one may come. */
const BEGIN: Call[] = [
  step('insertToken', { ...aToken(TOKENS[0]!), max_uses: 3, expires_at: START + 90 * DAY_MS }),
  ...NODES.slice(0, 2).map((id, n) =>
    step('enrolNode', {
      node: id,
      token_hash: `of ${TOKENS[0]}`,
      name: ['one', 'two'][n],
      labels: {},
      credential: aCredential(n, null),
      now: START,
    }),
  ),
  step('takeEpochs', 'rep_a', NODES.slice(0, 2)),
];

function step(name: Call['name'], ...args: unknown[]): Call {
  return { name, told: args, args: () => args };
}

/** About few nodes, their tokens, credentials and discoveries. */
export const nodeCalls: fc.Arbitrary<Call[]> = fc
  .array(fc.oneof(...CALLS.map(([weight, arbitrary]) => ({ weight, arbitrary }))), {
    minLength: 1,
    maxLength: 50,
    size: 'max',
  })
  .map((some) => [...BEGIN, ...some]);
