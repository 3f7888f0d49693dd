import { globSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { runDaemon } from '../../packages/daemon/src/run-daemon.ts';
import { openStateDir, writeCredential } from '../../packages/daemon/src/state-dir.ts';
import { startScriptedBackend } from '../support/scripted-backend.ts';
import { quiet } from '../support/store.ts';
import { answerAsAsked, type Message, readConversation } from './conversation.ts';
import { RECORDED } from './fleet.ts';
import { asOfLater } from './likeness.ts';
import { PlayedControl } from './played-control.ts';

/**
 * An owner goes back: the daemon of today works with the control plane of each minor release, as it was recorded then
 * (record-link.ts), and with one of the next release, as far as it can be known.
 */
vi.setConfig({ testTimeout: 90_000, hookTimeout: 60_000 }); // a daemon and its thread start

const recordings = globSync('link/*.jsonl', { cwd: import.meta.dirname }).toSorted();
const NEXT: Message = { type: 'fleet.of_a_later_minor', id: 'm1' };
/** It ended drained, and answered with an error what nobody knows yet, and nothing else. */
const WELL = { exit_code: 0, refused: [NEXT['id']] as unknown[] };

describe('today’s daemon', () => {
  test('there is a recording of the first release', () => {
    expect(recordings).toContain('link/0.1.jsonl');
  });

  test.each(recordings)('works with the control plane of %s', async (recording) => {
    expect(await play(recording, (same) => same)).toEqual(WELL);
  });

  test.each(recordings.slice(-1))('works with a control plane of the release after %s', async (recording) => {
    expect(await play(recording, asOfLater)).toEqual(WELL);
  });
});

async function play(recording: string, as: (message: Message) => Message): Promise<typeof WELL> {
  const lines = readConversation(join(import.meta.dirname, recording));
  const control = await PlayedControl.open(lines, as);
  onTestFinished(() => control.close());
  const stop = new AbortController();
  const { ended } = await startDaemon(control.url, backendIdIn(recording), stop);
  for (const line of lines) {
    if ('step' in line) {
      if (line.step === 'stopped') stop.abort();
      continue;
    }
    await control.play(line);
    if ('message' in line && line.message.type === 'node.registered') control.send(NEXT);
  }
  return { exit_code: await ended, refused: control.refused };
}

/** The offers of then name it. */
function backendIdIn(recording: string): string {
  for (const line of readConversation(join(import.meta.dirname, recording))) {
    if ('message' in line && line.message.type === 'job.offer') return String(line.message['backend']);
  }
  throw new Error(`${recording} has no offer.`);
}

/** `ended` is its exit code. */
async function startDaemon(
  url: string,
  backend_id: string,
  stop: AbortController,
): Promise<{ ended: Promise<number> }> {
  const backend = await startScriptedBackend(answerAsAsked);
  // Short: the path of a socket lies below it.
  const state_dir = await mkdtemp(join(tmpdir(), 'fl-'));
  const paths = await openStateDir(state_dir);
  const { id: node_id, name, credential } = RECORDED.node;
  await writeCredential(paths, { url, node_id, name, credential, insecure: false, enrolled_at: '' });
  const backends = [{ id: backend_id, url: backend.url, slots: 4, probe: 'list' }];
  await writeFile(paths.config, JSON.stringify({ find_backends: false, status_port: 0, backends }));
  const kill = new AbortController();
  const ended = runDaemon({
    state_dir,
    environment: {},
    log: quiet,
    handle_signals: false,
    signal: stop.signal,
    kill: kill.signal,
  });
  onTestFinished(async () => {
    kill.abort();
    await ended;
    await backend.close();
    await rm(state_dir, { recursive: true, force: true });
  });
  return { ended };
}
