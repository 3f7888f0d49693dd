import type { ROUTES } from '@flotilla/protocol';

/**
 * Method and path of each route. The protocol's own table is imported as a type only (a client carries no schemas
 * with it), so the strings stand here again; the compiler refuses every one that differs from the protocol's.
 */
export const PATHS = {
  healthz: 'GET /healthz',
  readyz: 'GET /readyz',

  models: 'GET /v1/models',
  model: 'GET /v1/models/*',
  chat: 'POST /v1/chat/completions',
  completions: 'POST /v1/completions',
  embeddings: 'POST /v1/embeddings',

  whoami: 'GET /api/v1/whoami',
  listKeys: 'GET /api/v1/keys',
  createKey: 'POST /api/v1/keys',
  showKey: 'GET /api/v1/keys/:id',
  updateKey: 'PATCH /api/v1/keys/:id',
  revokeKey: 'DELETE /api/v1/keys/:id',

  listTokens: 'GET /api/v1/enrolment-tokens',
  createToken: 'POST /api/v1/enrolment-tokens',
  deleteToken: 'DELETE /api/v1/enrolment-tokens/:id',

  listNodes: 'GET /api/v1/nodes',
  showNode: 'GET /api/v1/nodes/:id',
  updateNode: 'PATCH /api/v1/nodes/:id',
  cordonNode: 'POST /api/v1/nodes/:id/cordon',
  uncordonNode: 'POST /api/v1/nodes/:id/uncordon',
  drainNode: 'POST /api/v1/nodes/:id/drain',
  rotateNode: 'POST /api/v1/nodes/:id/rotate',
  revokeNode: 'POST /api/v1/nodes/:id/revoke',
  deleteNode: 'DELETE /api/v1/nodes/:id',

  discoverModels: 'POST /api/v1/nodes/:id/model-discoveries',
  showDiscovery: 'GET /api/v1/model-discoveries/:id',
  nodeModels: 'GET /api/v1/nodes/:id/models',
  listProviders: 'GET /api/v1/providers',
  createProvider: 'POST /api/v1/providers',
  showProvider: 'GET /api/v1/providers/:id',
  updateProvider: 'PATCH /api/v1/providers/:id',
  probeProvider: 'POST /api/v1/providers/:id/probe',
  deleteProvider: 'DELETE /api/v1/providers/:id',

  listRoutes: 'GET /api/v1/routes',
  createRoute: 'POST /api/v1/routes',
  explainRoute: 'POST /api/v1/routes/explain',
  showRoute: 'GET /api/v1/routes/:id',
  updateRoute: 'PATCH /api/v1/routes/:id',
  deleteRoute: 'DELETE /api/v1/routes/:id',

  listJobs: 'GET /api/v1/jobs',
  createJob: 'POST /api/v1/jobs',
  createJobs: 'POST /api/v1/jobs/batch',
  showJob: 'GET /api/v1/jobs/:id',
  jobResult: 'GET /api/v1/jobs/:id/result',
  jobEvents: 'GET /api/v1/jobs/:id/events',
  deleteJob: 'DELETE /api/v1/jobs/:id',
  explainJob: 'GET /api/v1/jobs/:id/explain',
  cancelJob: 'POST /api/v1/jobs/:id/cancel',

  usage: 'GET /api/v1/usage',
  usageLimits: 'GET /api/v1/usage/limits',
  usageSummary: 'GET /api/v1/usage/summary',

  listAudit: 'GET /api/v1/audit',
  pulse: 'GET /api/v1/pulse',
  backup: 'GET /api/v1/backup',
} as const satisfies { [N in keyof Routes]?: `${Routes[N]['method']} ${Routes[N]['path']}` };

type Routes = typeof ROUTES;
export type RouteName = keyof typeof PATHS;

/** A schema's type without importing its library. */
type OutputOf<S> = S extends { _zod: { output: infer T } } ? T : never;
type InputOf<S> = S extends { _zod: { input: infer T } } ? T : never;

/** What a route answers; undefined for one that answers 204. */
export type Answer<N extends RouteName> = Routes[N] extends { answer: infer S } ? OutputOf<S> : undefined;
/** What a route takes: fields that have a default may be left out. */
export type Body<N extends RouteName> = Routes[N] extends { body: infer S } ? InputOf<S> : undefined;
export type Query<N extends RouteName> = Routes[N] extends { query: infer S }
  ? Partial<OutputOf<S>>
  : undefined;
/** Routes whose answer is one page of a list. */
export type ListName = {
  [N in RouteName]: Answer<N> extends { data: unknown[]; next_after: string | null } ? N : never;
}[RouteName];
export type Item<N extends ListName> = Answer<N> extends { data: (infer T)[] } ? T : never;
