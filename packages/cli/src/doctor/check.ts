/**
 * One thing looked at. `warn`: it works, and something is not as it should be. `fail`: it does not work. `skip`: it could
 * not be looked at, with the reason: never taken for well.
 */
export type CheckState = 'ok' | 'warn' | 'fail' | 'skip';

export interface Check {
  area: 'host' | 'store' | 'control plane' | 'nodes' | 'this node';
  name: string;
  state: CheckState;
  /** What was found, and what it means. */
  found: string;
  /** What to do. */
  next?: string;
}

export function textOf(error: unknown): string {
  return error instanceof Error && error.message !== '' ? error.message : String(error);
}

/** Runs a group of checks; one that breaks is a failure of its own, and costs no other. */
export async function looked(
  area: Check['area'],
  name: string,
  look: () => Promise<Check[]>,
): Promise<Check[]> {
  try {
    return await look();
  } catch (error) {
    return [{ area, name, state: 'fail', found: textOf(error) }];
  }
}
