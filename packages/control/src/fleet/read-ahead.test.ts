import { expect, test } from 'vitest';
import { memoryLog } from '../testing/memory-log.ts';
import { nodeRecord } from '../testing/peer-replicas.ts';
import { createReadAhead } from './read-ahead.ts';

test('what a node offers is known by its hash, until there is a roster; another hash is another offer', async () => {
  const node = { ...nodeRecord('a', 'model'), descriptor_hash: 'h1' };
  const ahead = createReadAhead(
    { loadNodes: () => Promise.resolve({ nodes: [node], unreadable: [] }) },
    memoryLog(),
  );
  expect(ahead.known('a', 'h1')).toBeUndefined();
  ahead.begin();
  await ahead.over();
  expect(ahead.known('a', 'h1')).toBe(node.descriptor);
  expect(ahead.known('a', 'h2')).toBeUndefined();
  expect(ahead.known('b', 'h1')).toBeUndefined();
  ahead.drop();
  expect(ahead.known('a', 'h1')).toBeUndefined();
});

test('a store that fails meanwhile costs the start nothing but the time', async () => {
  const log = memoryLog();
  const ahead = createReadAhead({ loadNodes: () => Promise.reject(new Error('away')) }, log);
  ahead.begin();
  await ahead.over();
  expect(ahead.known('a', 'h1')).toBeUndefined();
  expect(log.lines).toHaveLength(1);
});
