import {
  FlotillaError,
  MESSAGE_MAX_BYTES,
  type Needs,
  ROUTES,
  type Route,
  type RouteName,
} from '@flotilla/protocol';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { Readable } from 'node:stream';
import type { ServerResponse } from 'node:http';
import type { z } from 'zod';
import type { Principal } from '../accounts/principal.ts';
import type { NodePeer } from '../fleet/http-nodes.ts';
import { HttpError } from './errors.ts';

/**
 * Routes come from the protocol's table only. Each name of it has one handler (the type `Handlers` sees to that), which
 * gets what was asked for as the table's schemas read it, and returns what the table's schema says.
 */
export type Handlers = { readonly [Name in RouteName]: Handler<Name> };
type Handler<Name extends RouteName> = (call: Call<Name>) => Answer<Name> | Promise<Answer<Name>>;

export interface Call<Name extends RouteName> {
  params: Read<Name, 'params'>;
  query: Read<Name, 'query'>;
  body: Read<Name, 'body'>;
  principal: NeedsOf<Name> extends 'none' | 'metrics' | 'enrolment' | 'node' ? null : Principal;
  request: FastifyRequest;
  reply: FastifyReply;
}

type NeedsOf<Name extends RouteName> = (typeof ROUTES)[Name]['needs'];
type Part<Name extends RouteName, Key extends string> = (typeof ROUTES)[Name] extends {
  [K in Key]: infer Schema;
}
  ? Schema
  : undefined;
type Read<Name extends RouteName, Key extends string> =
  Part<Name, Key> extends z.ZodType ? z.output<Part<Name, Key>> : undefined;
/** Routes without an answer schema write on `reply` themselves, give what is sent piece by piece, or answer nothing (204). */
type Answer<Name extends RouteName> =
  Part<Name, 'answer'> extends z.ZodType ? z.input<Part<Name, 'answer'>> : Readable | void;

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The route's name in the protocol's table. */
    name?: RouteName;
    needs?: Needs;
  }
  interface FastifyRequest {
    /** Who asks; null on routes that need no key. */
    principal: Principal | null;
    /** The node that asks; null on routes that need no node's credential. */
    peer: NodePeer | null;
    answer: ServerResponse;
  }
}

/** Runs a handler as an act of administration that leaves a row. */
export type Audited = <T>(
  action: string,
  call: Pick<Call<RouteName>, 'principal' | 'params' | 'body' | 'request'>,
  run: () => Promise<T>,
) => Promise<T>;

export interface RouteBodies {
  /** `raw`: the handler reads the body's bytes itself, from `request.body`. */
  raw: readonly RouteName[];
  raw_limit_bytes: number;
}

/** Administration needs less than a chat with images does. */
const ADMIN_BODY_LIMIT_BYTES = 1024 * 1024;

function limitOf(needs: Needs): number {
  return needs === 'node' ? MESSAGE_MAX_BYTES : ADMIN_BODY_LIMIT_BYTES;
}

export function registerRoutes(
  app: FastifyInstance,
  handlers: Handlers,
  bodies: RouteBodies,
  audited: Audited,
): void {
  for (const name of Object.keys(ROUTES) as RouteName[]) {
    const { method, path, needs } = ROUTES[name];
    const raw = bodies.raw.includes(name);
    app.route({
      method,
      url: path,
      bodyLimit: raw ? bodies.raw_limit_bytes : limitOf(needs),
      config: { name, needs },
      handler: (request, reply) =>
        run(name, handlers[name] as Handler<RouteName>, raw, audited, request, reply),
    });
  }
}

/** Anything that is registered past the table is a mistake of ours, found at start. */
export function refuseForeignRoutes(app: FastifyInstance): void {
  app.addHook('onRoute', ({ method, url, config }) => {
    const known = config?.name === undefined ? undefined : ROUTES[config.name];
    const twin = method === 'HEAD' && known?.method === 'GET';
    if (known === undefined || known.path !== url || (known.method !== method && !twin)) {
      throw new Error(`${String(method)} ${url} is not in the route table of the protocol.`);
    }
  });
}

async function run(
  name: RouteName,
  handler: Handler<RouteName>,
  raw: boolean,
  audited: Audited,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<unknown> {
  const route: Route = ROUTES[name];
  const call = {
    params: route.params && read(route.params, request.params, 'path'),
    query: route.query && read(route.query, request.query, 'query'),
    body: raw || route.body === undefined ? undefined : read(route.body, jsonBody(request), 'body'),
    principal: request.principal,
    request,
    reply,
  } as Call<RouteName>;
  const handle = async () => handler(call);
  // HEAD looks, and acts on nothing.
  const answer =
    route.audit && request.method !== 'HEAD' ? await audited(route.audit, call, handle) : await handle();
  if (reply.sent) return reply;
  reply.code(route.status ?? 200);
  return reply.send(answer);
}

/** No body at all counts as an empty object, so that defaults apply: `curl -X POST …/drain` does what it says. */
function jsonBody(request: FastifyRequest): unknown {
  const body = request.body as Buffer | undefined;
  if (body === undefined || body.length === 0) return {};
  const type = request.headers['content-type'];
  if (type !== undefined && !/^application\/([\w.-]+\+)?json\b/i.test(type)) {
    throw new HttpError(
      415,
      `The body is read as JSON: send content-type application/json, not ${type.slice(0, 100)}.`,
    );
  }
  try {
    return JSON.parse(decoder.decode(body), refuseProto);
  } catch (error) {
    if (error instanceof FlotillaError) throw error;
    throw new FlotillaError('invalid_request', 'The body is not valid JSON.');
  }
}

/** A record with this name in it would be read without it, and a key meant to be restricted by it would not be. */
function refuseProto(name: string, value: unknown): unknown {
  if (name === '__proto__') throw new FlotillaError('invalid_request', 'No field is called __proto__.');
  return value;
}

/** Invalid UTF-8 is refused: replaced, it would be stored as another text than was sent. */
const decoder = new TextDecoder('utf-8', { fatal: true });

/** What the schema makes of it. @throws FlotillaError `invalid_request` that names the first field at fault */
export function read(schema: z.ZodType, value: unknown, place: 'path' | 'query' | 'body'): unknown {
  const data = readShape(schema, value, place);
  const unsound = unsoundText(data);
  if (unsound === undefined) return data;
  throw new FlotillaError(
    'invalid_request',
    `'${unsound}' has characters that cannot be stored (NUL, half a surrogate).`,
    {
      param: unsound,
    },
  );
}

/** Without a look at its texts: for what has parts that are read, and may be refused, each by itself. */
export function readShape(schema: z.ZodType, value: unknown, place: 'path' | 'query' | 'body'): unknown {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw invalid(parsed.error, value, place);
}

/** Where there is text that no store takes. Looked for once, here, so that nobody behind this needs to. */
function unsoundText(value: unknown): string | undefined {
  if (typeof value === 'string') return isSound(value) ? undefined : '';
  const waiting = [{ path: '', at: value }];
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    const { path, at } = next;
    if (typeof at !== 'object' || at === null) continue;
    for (const name of Object.keys(at)) {
      if (!isSound(name)) return path;
      const member = (at as Record<string, unknown>)[name];
      if (typeof member === 'string' ? isSound(member) : typeof member !== 'object') continue;
      const below = path === '' ? name : `${path}.${name}`;
      if (typeof member === 'string') return below;
      waiting.push({ path: below, at: member });
    }
  }
  return undefined;
}

function isSound(text: string): boolean {
  return !text.includes('\0') && text.isWellFormed();
}

/** The first problem, in words that name the field. */
export function invalid(error: z.ZodError, value: unknown, place: string): FlotillaError {
  const issue = error.issues[0]!;
  const path = issue.code === 'unrecognized_keys' ? [...issue.path, issue.keys[0]!] : issue.path;
  const param = path.map(String).join('.');
  const name = param === '' ? `The ${place}` : `'${param}'`;
  return new FlotillaError('invalid_request', `${name} ${problem(issue, valueAt(value, path))}`, {
    ...(param !== '' && { param }),
  });
}

function problem(issue: z.core.$ZodIssue, value: unknown): string {
  if (issue.code === 'unrecognized_keys') return 'is not a field of this request.';
  if (value === undefined && issue.code !== 'custom') return 'is missing.';
  if (issue.code === 'too_small' && issue.origin === 'string') return 'is empty, or too short.';
  return `is not valid: ${issue.message.replace(/^Invalid (input|option|string): /, '').replace(/\.$/, '')}.`;
}

function valueAt(value: unknown, path: readonly PropertyKey[]): unknown {
  let at = value;
  for (const step of path) {
    if (typeof at !== 'object' || at === null || !Object.hasOwn(at, step)) return undefined;
    at = (at as Record<PropertyKey, unknown>)[step];
  }
  return at;
}

const PATTERNS = Object.values(ROUTES).map(({ method, path }) => ({
  method,
  path,
  pattern: new RegExp(
    `^${path.replaceAll(/[.+]/g, String.raw`\$&`).replaceAll(/:\w+/g, '[^/]+').replace('*', '.+')}$`,
  ),
}));

/** Why there is nothing at this path: another method is, or nothing at all; then what there is instead. */
export function nothingHere(method: string, url: string): FlotillaError {
  const [path = '/'] = url.split('?');
  const methods = PATTERNS.filter(({ pattern }) => pattern.test(path)).map((route) => route.method);
  if (methods.length > 0) {
    const allow = [...(methods.includes('GET') ? ['HEAD'] : []), ...methods].sort().join(', ');
    return new HttpError(405, `${method} is not possible here; ${allow} is.`, { allow });
  }
  const shown = path.length > 200 ? `${path.slice(0, 200)}…` : path;
  if (PATTERNS.some(({ pattern }) => pattern.test(`/v1${path.replace(/\/+$/, '')}`))) {
    return new FlotillaError(
      'not_found',
      `There is no ${shown} here: the base URL of an OpenAI client ends with /v1, as in http://…/v1.`,
    );
  }
  if (path !== '/v1' && !path.startsWith('/v1/')) {
    return new FlotillaError('not_found', `There is no ${shown} here; /openapi.json lists what there is.`);
  }
  const known = PATTERNS.filter((route) => route.path.startsWith('/v1/')).map(
    (route) => `${route.method} ${route.path.replace('*', '{model}')}`,
  );
  return new FlotillaError('not_found', `There is no ${shown} here. There is: ${known.join(', ')}.`);
}

/** A patch holds only what it changes; what zod read as absent may be there as undefined. */
export function present<T extends object>(patch: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(patch).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]: Exclude<T[K], undefined>;
  };
}
