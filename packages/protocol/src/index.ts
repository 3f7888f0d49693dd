/** Messages, frames, HTTP routes, ids and the error catalogue: what every part of Flotilla, and every node, agrees on. */
export * from './ids.ts';
export * from './errors.ts';
export * from './states.ts';
export * from './descriptor.ts';
export * from './messages.ts';
export * from './frames.ts';
export * from './resources/paging.ts';
export * from './resources/keys.ts';
export * from './resources/nodes.ts';
export * from './resources/jobs.ts';
export * from './resources/usage.ts';
export * from './resources/audit.ts';
export * from './resources/openai.ts';
export * from './node-http.ts';
export * from './resources/upstreams.ts';
export * from './route.ts';
export * from './routes.ts';
