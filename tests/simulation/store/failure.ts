import { asStoreError } from '../../../packages/control/src/store/failure.ts';

/** What the real stores reject with, made by what makes it there: `unavailable`, its cause for the log only. */

/** The statement never reached the store: nothing of it is committed. */
export function storeAway(): Error {
  return asStoreError(Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' }));
}

/** The connection ended while the statement was under way: whether it is committed, nobody can tell from the error. */
export function answerLost(): Error {
  return asStoreError(new Error('Connection terminated unexpectedly'));
}

/** A row that the store takes from nobody, by its SQLSTATE; sent again, it fails again. */
export function rowRefused(sqlstate: string, message: string): Error {
  return asStoreError(Object.assign(new Error(message), { code: sqlstate }));
}

export function notUnique(table: string, what: string): Error {
  return rowRefused('23505', `duplicate key value violates unique constraint of "${table}": ${what}`);
}
