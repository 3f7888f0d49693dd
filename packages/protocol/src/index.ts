/** Messages, frames, HTTP routes, ids and the error catalogue: what every part of Flotilla, and every node, agrees on. */
export * from './ids.ts';
export * from './errors.ts';
export * from './states.ts';
export * from './descriptor.ts';
export * from './messages.ts';
export * from './frames.ts';
export * from './openai-resources.ts';
export * from './resources.ts';
export * from './node-http.ts';
export * from './upstream-resources.ts';
export * from './route.ts';
export * from './routes.ts';
