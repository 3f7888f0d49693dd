/**
 * What the signals ask for that a person sends to a process to end it.
 *
 *     running ── a signal ──▶ asked ── half a second ──▶ impatient: the next one means at once
 *
 * One Ctrl-C can arrive twice: the terminal sends it to all of its processes, and npm, being one of them, hands it on.
 * Taken for a second one, it would cut the work that the first lets finish.
 */
export type StopRequest = 'in order' | 'the same again' | 'at once';

export const SAME_KEY_PRESS_MS = 500;

/**
 * @param after calls back after so many ms; it need not keep the process running
 * @returns to be called at each signal
 */
export function createStopRequests(after: (delay_ms: number, run: () => void) => unknown): () => StopRequest {
  let state: 'running' | 'asked' | 'impatient' = 'running';
  return () => {
    if (state === 'impatient') return 'at once';
    if (state === 'asked') return 'the same again';
    state = 'asked';
    // In two halves: where the process was too busy to listen, it hears between them what has come meanwhile.
    const half = SAME_KEY_PRESS_MS / 2;
    after(half, () => after(half, () => (state = 'impatient')));
    return 'in order';
  };
}
