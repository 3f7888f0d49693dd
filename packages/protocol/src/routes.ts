import { z } from 'zod';
import {
  drainBody,
  enrolBody,
  enrolled,
  explainView,
  idParams,
  inferenceBody,
  jobView,
  jobsQuery,
  keyCreate,
  keyCreated,
  keyUpdate,
  keyView,
  modelList,
  modelView,
  nodeUpdate,
  nodeView,
  page,
  pageQuery,
  rotateBody,
  rotated,
  tokenCreate,
  tokenCreated,
  tokenView,
  usageQuery,
  usageRow,
  usageSummary,
  usageSummaryQuery,
} from './resources.ts';
import { SCOPES } from './states.ts';

/**
 * Every HTTP route, once: server, SDK, commands, `/openapi.json` and the authentication test all derive from this
 * table. A route that is not in it does not exist; one that needs nothing says so with `needs: 'none'`.
 */
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

const statusView = z.object({ status: z.string() }).loose();
export const whoamiView = z.object({
  id: z.string(),
  name: z.string(),
  role: z.string().nullable(),
  scopes: z.array(z.string()),
});

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
}
const route = <const R extends Route>(definition: R): R => definition;

export const ROUTES = {
  healthz: route({
    method: 'GET',
    path: '/healthz',
    needs: 'none',
    summary: 'The process lives.',
    answer: statusView,
  }),
  readyz: route({
    method: 'GET',
    path: '/readyz',
    needs: 'none',
    summary: 'It can serve: store, migrations, bus.',
    answer: statusView,
  }),
  metrics: route({ method: 'GET', path: '/metrics', needs: 'metrics', summary: 'Prometheus metrics.' }),
  openapi: route({ method: 'GET', path: '/openapi.json', needs: 'none', summary: 'This document.' }),

  models: route({
    method: 'GET',
    path: '/v1/models',
    needs: 'inference',
    summary: 'Models that this key can use.',
    answer: modelList,
  }),
  model: route({
    method: 'GET',
    path: '/v1/models/*',
    needs: 'inference',
    summary: 'One model.',
    answer: modelView,
  }),
  chat: route({
    method: 'POST',
    path: '/v1/chat/completions',
    needs: 'inference',
    summary: 'Chat completion, streaming or not.',
    body: inferenceBody,
  }),
  completions: route({
    method: 'POST',
    path: '/v1/completions',
    needs: 'inference',
    summary: 'Text completion, streaming or not.',
    body: inferenceBody,
  }),
  embeddings: route({
    method: 'POST',
    path: '/v1/embeddings',
    needs: 'inference',
    summary: 'Embeddings.',
    body: inferenceBody,
  }),

  whoami: route({
    method: 'GET',
    path: '/api/v1/whoami',
    needs: 'key',
    summary: 'The key in use.',
    answer: whoamiView,
  }),
  listKeys: route({
    method: 'GET',
    path: '/api/v1/keys',
    needs: 'admin',
    summary: 'API keys.',
    query: pageQuery,
    answer: page(keyView),
  }),
  createKey: route({
    method: 'POST',
    path: '/api/v1/keys',
    needs: 'admin',
    summary: 'Make a key; it is shown once.',
    body: keyCreate,
    answer: keyCreated,
    status: 201,
  }),
  showKey: route({
    method: 'GET',
    path: '/api/v1/keys/:id',
    needs: 'admin',
    summary: 'One key.',
    params: idParams,
    answer: keyView,
  }),
  updateKey: route({
    method: 'PATCH',
    path: '/api/v1/keys/:id',
    needs: 'admin',
    summary: "Change a key's rights and limits.",
    params: idParams,
    body: keyUpdate,
    answer: keyView,
  }),
  revokeKey: route({
    method: 'DELETE',
    path: '/api/v1/keys/:id',
    needs: 'admin',
    summary: 'Revoke a key, everywhere within a second.',
    params: idParams,
    answer: keyView,
  }),

  listTokens: route({
    method: 'GET',
    path: '/api/v1/enrolment-tokens',
    needs: 'admin',
    summary: 'Enrolment tokens that still work.',
    query: pageQuery,
    answer: page(tokenView),
  }),
  createToken: route({
    method: 'POST',
    path: '/api/v1/enrolment-tokens',
    needs: 'admin',
    summary: 'Make a token that enrols nodes; it is shown once.',
    body: tokenCreate,
    answer: tokenCreated,
    status: 201,
  }),
  deleteToken: route({
    method: 'DELETE',
    path: '/api/v1/enrolment-tokens/:id',
    needs: 'admin',
    summary: 'Withdraw a token.',
    params: idParams,
    status: 204,
  }),

  listNodes: route({
    method: 'GET',
    path: '/api/v1/nodes',
    needs: 'nodes:read',
    summary: 'The roster.',
    query: pageQuery,
    answer: page(nodeView),
  }),
  showNode: route({
    method: 'GET',
    path: '/api/v1/nodes/:id',
    needs: 'nodes:read',
    summary: 'One node, and why it is as it is.',
    params: idParams,
    answer: nodeView,
  }),
  updateNode: route({
    method: 'PATCH',
    path: '/api/v1/nodes/:id',
    needs: 'admin',
    summary: 'Change labels or the model allow-list.',
    params: idParams,
    body: nodeUpdate,
    answer: nodeView,
  }),
  cordonNode: route({
    method: 'POST',
    path: '/api/v1/nodes/:id/cordon',
    needs: 'admin',
    summary: 'Give it no new work.',
    params: idParams,
    answer: nodeView,
  }),
  uncordonNode: route({
    method: 'POST',
    path: '/api/v1/nodes/:id/uncordon',
    needs: 'admin',
    summary: 'Give it work again; ends a drain.',
    params: idParams,
    answer: nodeView,
  }),
  drainNode: route({
    method: 'POST',
    path: '/api/v1/nodes/:id/drain',
    needs: 'admin',
    summary: 'Cordon, then finish or move what runs by the deadline.',
    params: idParams,
    body: drainBody,
    answer: nodeView,
  }),
  rotateNode: route({
    method: 'POST',
    path: '/api/v1/nodes/:id/rotate',
    needs: 'admin',
    summary: 'A new credential; the old one works through the overlap.',
    params: idParams,
    body: rotateBody,
    answer: rotated,
  }),
  revokeNode: route({
    method: 'POST',
    path: '/api/v1/nodes/:id/revoke',
    needs: 'admin',
    summary: 'Withdraw its credential at once.',
    params: idParams,
    answer: nodeView,
  }),
  deleteNode: route({
    method: 'DELETE',
    path: '/api/v1/nodes/:id',
    needs: 'admin',
    summary: 'Forget a revoked or offline node.',
    params: idParams,
    status: 204,
  }),

  listJobs: route({
    method: 'GET',
    path: '/api/v1/jobs',
    needs: 'jobs',
    summary: 'Jobs, newest first.',
    query: jobsQuery,
    answer: page(jobView),
  }),
  showJob: route({
    method: 'GET',
    path: '/api/v1/jobs/:id',
    needs: 'jobs',
    summary: 'One job with its attempts.',
    params: idParams,
    answer: jobView,
  }),
  explainJob: route({
    method: 'GET',
    path: '/api/v1/jobs/:id/explain',
    needs: 'jobs',
    summary: 'Every node with its verdict on this job.',
    params: idParams,
    answer: explainView,
  }),
  cancelJob: route({
    method: 'POST',
    path: '/api/v1/jobs/:id/cancel',
    needs: 'jobs',
    summary: 'Cancel an open job.',
    params: idParams,
    answer: jobView,
  }),

  usage: route({
    method: 'GET',
    path: '/api/v1/usage',
    needs: 'key',
    summary: 'Settled requests, newest first; own ones without admin.',
    query: usageQuery,
    answer: page(usageRow),
  }),
  usageSummary: route({
    method: 'GET',
    path: '/api/v1/usage/summary',
    needs: 'key',
    summary: 'Usage added up.',
    query: usageSummaryQuery,
    answer: usageSummary,
  }),

  enrol: route({
    method: 'POST',
    path: '/node/v1/enrol',
    needs: 'enrolment',
    summary: "Exchange an enrolment token for the node's own credential.",
    body: enrolBody,
    answer: enrolled,
    status: 201,
  }),
  link: route({ method: 'GET', path: '/node/v1/link', needs: 'node', summary: 'The node link (WebSocket).' }),
} as const satisfies Record<string, Route>;
export type RouteName = keyof typeof ROUTES;
