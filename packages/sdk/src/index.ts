/** The typed client. It has no dependencies and runs wherever there is `fetch`. */
export { Flotilla } from './flotilla.ts';
export { type ClientErrorCode, FlotillaApiError } from './error.ts';
export type { CallInput, CallOptions, FlotillaOptions } from './transport.ts';
export type { Answer, Body, Item, ListName, Query, RouteName } from './routes.ts';
export type { Listing, Page } from './listing.ts';
export { readEvents, type SseEvent } from './sse.ts';
export type {
  ChatChunk,
  ChatCompletion,
  ChatMessage,
  ChatRequest,
  ChatStream,
  ChatUsage,
  StreamOptions,
} from './chat.ts';
export type { AuditEntry } from './audit.ts';
export type { Key } from './keys.ts';
export type { EnrolmentToken } from './tokens.ts';
export type { Node, NodeModels } from './nodes.ts';
export type { Provider } from './providers.ts';
export type { Route, RouteExplanation } from './model-routes.ts';
export type {
  Explanation,
  Job,
  JobAccepted,
  JobRequest,
  JobVerdict,
  SubmitOptions,
  WatchOptions,
} from './jobs.ts';
export type { Limits, UsageGroup, UsageRow } from './usage.ts';
export type { Model, ModelDiscovery } from './models.ts';
