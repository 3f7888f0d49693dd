import { ERROR_CODES, ERRORS, ROUTES, type Route, type RouteName } from '@flotilla/protocol';
import { z } from 'zod';
import type { Handlers } from './routing.ts';

/** `/openapi.json`, made from the route table once, when somebody asks. */
export function openapiRoutes(public_url: string | undefined): Pick<Handlers, 'openapi'> {
  let text: string | undefined;
  return {
    async openapi({ reply }) {
      text ??= JSON.stringify(openapiDocument(public_url));
      await reply.header('content-type', 'application/json; charset=utf-8').send(text);
    },
  };
}

type Json = Record<string, unknown>;

export function openapiDocument(public_url?: string): Json {
  const schemas: Json = { Error: errorSchema() };
  const paths: Record<string, Json> = {};
  for (const name of Object.keys(ROUTES) as RouteName[]) {
    const route: Route = ROUTES[name];
    const path = openapiPath(route.path);
    paths[path] = { ...paths[path], [route.method.toLowerCase()]: operation(name, route, schemas) };
  }
  return {
    openapi: '3.1.0',
    info: { title: 'Flotilla', version: '1', description: 'One control plane for AI machines.' },
    ...(public_url !== undefined && { servers: [{ url: public_url }] }),
    security: [{ bearer: [] }, { apiKey: [] }],
    paths,
    components: {
      schemas,
      securitySchemes: {
        bearer: { type: 'http', scheme: 'bearer' },
        apiKey: { type: 'apiKey', in: 'header', name: 'x-api-key' },
      },
      responses: {
        Error: {
          description: 'A refusal, in the one shape of all of them.',
          content: { 'application/json': { schema: { $ref: '#/components/schemas/Error' } } },
        },
      },
    },
  };
}

/** `:id` is `{id}`; the rest of the path, slashes and all, is a model's id. */
function openapiPath(path: string): string {
  return path.replaceAll(/:(\w+)/g, '{$1}').replace('*', '{model}');
}

function operation(name: RouteName, route: Route, schemas: Json): Json {
  const open = ['none', 'metrics', 'enrolment'].includes(route.needs);
  const content = route.answer && {
    'application/json': { schema: schemaOf(route.answer, 'output', schemas) },
  };
  return {
    operationId: name,
    summary: route.summary,
    description: `Needs: ${route.needs}.`,
    ...(open && { security: [] }),
    parameters: [...pathParameters(route), ...queryParameters(route, schemas)],
    ...(route.body && {
      requestBody: {
        required: !route.body.safeParse({}).success,
        content: { 'application/json': { schema: schemaOf(route.body, 'input', schemas) } },
      },
    }),
    responses: {
      [String(name === 'link' ? 101 : (route.status ?? 200))]: {
        description: 'Done.',
        ...(content && { content }),
      },
      default: { $ref: '#/components/responses/Error' },
    },
  };
}

function pathParameters(route: Route): Json[] {
  const names = [...openapiPath(route.path).matchAll(/\{(\w+)\}/g)].map((match) => match[1]);
  return names.map((name) => ({ name, in: 'path', required: true, schema: { type: 'string' } }));
}

function queryParameters(route: Route, schemas: Json): Json[] {
  if (route.query === undefined) return [];
  return Object.entries(route.query.shape).map(([name, schema]) => ({
    name,
    in: 'query',
    required: false,
    schema: schemaOf(schema as z.ZodType, 'input', schemas),
  }));
}

/** Named schemas become components, referred to from everywhere. */
function schemaOf(schema: z.ZodType, io: 'input' | 'output', schemas: Json): Json {
  const {
    $schema: _dialect,
    $defs,
    id,
    ...own
  } = z.toJSONSchema(schema, { io, unrepresentable: 'any' }) as Json;
  for (const [name, definition] of Object.entries(($defs ?? {}) as Record<string, Json>)) {
    const { id: _id, ...rest } = definition;
    schemas[name] = relocated(rest);
  }
  if (typeof id !== 'string') return relocated(own) as Json;
  schemas[id] = relocated(own);
  return { $ref: `#/components/schemas/${id}` };
}

function relocated(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(relocated);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([name, member]) => [
      name,
      name === '$ref' && typeof member === 'string'
        ? member.replace('#/$defs/', '#/components/schemas/')
        : relocated(member),
    ]),
  );
}

function errorSchema(): Json {
  return {
    type: 'object',
    required: ['error'],
    properties: {
      error: {
        type: 'object',
        required: ['message', 'type', 'code', 'param'],
        properties: {
          message: { type: 'string' },
          type: { type: 'string', enum: [...new Set(ERROR_CODES.map((code) => ERRORS[code].type))] },
          code: { type: 'string', enum: ERROR_CODES },
          param: { type: ['string', 'null'] },
          retry_after_ms: { type: 'integer' },
        },
      },
    },
  };
}
