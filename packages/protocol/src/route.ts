import type { z } from 'zod';
import { SCOPES } from './states.ts';

/** What a route says of itself. */
export const NEEDS = [
  'none',
  /** Direct loopback, or the metrics token. */
  'metrics',
  /** An enrolment token in the body. */
  'enrolment',
  /** A node's credential. */
  'node',
  /** Any API key. */
  'key',
  ...SCOPES,
  'admin',
] as const;
export type Needs = (typeof NEEDS)[number];

export interface Route {
  method: 'GET' | 'POST' | 'PATCH' | 'DELETE';
  path: string;
  needs: Needs;
  summary: string;
  params?: z.ZodObject;
  query?: z.ZodObject;
  body?: z.ZodType;
  answer?: z.ZodType;
  status?: number;
  /** The act that the audit has a row for, like `key.create`; `false`: the route changes nothing. */
  audit?: `${string}.${string}` | false;
}
/** Whoever may change the installation leaves a row: without a word on `audit` such a route does not compile. */
type Audited<R extends Route> = R extends { needs: 'admin'; method: 'POST' | 'PATCH' | 'DELETE' }
  ? { audit: NonNullable<Route['audit']> }
  : unknown;
export const route = <const R extends Route>(definition: R & Audited<R>): R => definition;
