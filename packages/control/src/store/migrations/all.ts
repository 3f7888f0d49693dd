import type { Migration } from '../migrate.ts';
import { initial } from './0001-initial.ts';

/** In order, never edited once released: a change is a new file. */
export const MIGRATIONS: readonly Migration[] = [initial];
