import {
  type BackendTold,
  DISCOVERY_REASONS,
  DISCOVERY_STAGES,
  type DiscoveryReason,
  type DiscoveryStage,
} from '@flotilla/protocol';
import { describe, expect, test } from 'vitest';
import { catalogueOutdated, discoveryEnd, discoveryMessage, discoveryRefusal } from './discovery.ts';

const listed = (backend: string, models: string[] = []): BackendTold => ({
  outcome: 'listed',
  backend,
  kind: 'ollama',
  models: models.map((id) => ({ id, operations: ['chat'] })),
  models_total: models.length,
});
const failed = (
  backend: string,
  reason: DiscoveryReason,
  stage: DiscoveryStage = 'listing',
): BackendTold => ({
  outcome: 'failed',
  backend,
  reason,
  stage,
});

describe('who is asked', () => {
  const features = ['model_discovery'];
  test.each([
    ['a node that can be', { state: 'online', connected: true, features }, null],
    [
      'one that is cut off for a moment: it may be back in time',
      { state: 'suspect', connected: false, features: [] },
      null,
    ],
    ['not one that is away', { state: 'offline', connected: false, features }, 'offline'],
    ['not one that never came', { state: 'pending', connected: false, features: [] }, 'offline'],
    ['not one that is too old', { state: 'online', connected: true, features: ['other'] }, 'unsupported'],
  ] as const)('%s', (_who, node, refusal) => {
    expect(discoveryRefusal(node)).toBe(refusal);
  });
});

describe('how it ends', () => {
  test('completed where each told a list, also an empty one', () => {
    expect(discoveryEnd([listed('a', ['m']), listed('b')], null)).toMatchObject({
      state: 'completed',
      reason: null,
      waiting_for: null,
    });
  });

  test('failed where one did not, whatever the others told; their lists are in it', () => {
    const end = discoveryEnd([listed('a', ['m']), failed('b', 'backend_down', 'connecting')], null);
    expect(end).toMatchObject({
      state: 'failed',
      reason: 'backend_down',
      stage: 'connecting',
      waiting_for: 'b',
    });
    expect(end.results).toHaveLength(2);
  });

  test('timed out where silence was the only failure, told of the one that was least far', () => {
    const slow = [failed('a', 'timed_out', 'listing'), failed('b', 'timed_out', 'identifying'), listed('c')];
    expect(discoveryEnd(slow, null)).toMatchObject({
      state: 'timed_out',
      stage: 'identifying',
      waiting_for: 'b',
    });
  });

  test('the backend that is told of is the one whose reason is told', () => {
    const end = discoveryEnd(
      [failed('silent', 'timed_out', 'identifying'), failed('locked', 'not_authorised', 'listing')],
      null,
    );
    expect(end).toMatchObject({
      state: 'failed',
      reason: 'not_authorised',
      stage: 'listing',
      waiting_for: 'locked',
    });
  });

  test('without any backend it is a failure, never an empty list; what was not asked for does not count', () => {
    for (const end of [discoveryEnd([], null), discoveryEnd([listed('a', ['m'])], 'b')]) {
      expect(end).toMatchObject({ state: 'failed', reason: 'no_backend', results: [] });
    }
    expect(discoveryEnd([listed('a'), failed('b', 'backend_down')], 'a').state).toBe('completed');
  });
});

describe('a list', () => {
  const kept = { kind: 'ollama', version: '1' };
  test.each([
    ['stays while its backend is the same', kept, { kind: 'ollama', version: '1' }, false],
    ['stays while its backend tells no version', kept, { kind: 'ollama' }, false],
    ['stays while nobody knows what its backend is', kept, { kind: 'unknown' }, false],
    [
      'stays when the version was not known before',
      { kind: 'openai', version: null },
      { kind: 'openai', version: '1' },
      false,
    ],
    ['goes with another version', kept, { kind: 'ollama', version: '2' }, true],
    ['goes with another kind', kept, { kind: 'llama.cpp', version: '1' }, true],
  ] as const)('%s', (_what, catalogue, backend, outdated) => {
    expect(catalogueOutdated(catalogue, backend)).toBe(outdated);
  });
});

test('each failure says which node, and what to do: a command, or a line of node.yaml', () => {
  for (const reason of DISCOVERY_REASONS) {
    for (const stage of DISCOVERY_STAGES) {
      for (const backend of [null, 'ollama']) {
        const message = discoveryMessage({ reason, stage, node: 'attic', backend, detail: 'status 500.' });
        expect(message).toMatch(/attic/);
        expect(message).toMatch(/node\.yaml|flotilla nodes models attic/);
        expect(message).not.toMatch(/undefined|null|\.\)|\.\./);
      }
    }
  }
});
