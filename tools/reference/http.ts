import { ROUTES, type Route, type RouteName } from '@flotilla/protocol';
import { openapiDocument } from '../../packages/control/src/http/openapi.ts';
import { code, page, table } from './markdown.ts';
import { type Field, fieldsOf, type JsonSchema, typeText } from './schema.ts';

/** Of an OpenAPI document, what the page tells. */
interface Operation {
  operationId: RouteName;
  summary: string;
  parameters: { name: string; in: 'path' | 'query'; schema: JsonSchema }[];
  requestBody?: { required: boolean; content: Content };
  responses: Record<string, { content?: Content }>;
}
interface Content {
  'application/json': { schema: JsonSchema };
}

/** Made from the document that the server gives, so that the two cannot differ. */
export function httpPage(): string {
  const { paths, components } = openapiDocument() as {
    paths: Record<string, Record<string, Operation>>;
    components: { schemas: Record<string, JsonSchema> };
  };
  const operations = Object.entries(paths).flatMap(([path, methods]) =>
    Object.values(methods).map((operation) => ({ area: areaOf(path), path, operation })),
  );
  const areas = Map.groupBy(operations, ({ area }) => area);
  const sections = [...areas].map(([area, own]) =>
    [`## ${area}`, ...own.map(({ path, operation }) => routeText(path, operation))].join('\n\n'),
  );
  const objects = Object.entries(components.schemas).map(
    ([name, schema]) => `### ${name}\n\n${fieldTable(fieldsOf(schema))}`,
  );
  return page(
    'HTTP API',
    '`packages/protocol/src/routes.ts` and `resources/`',
    INTRODUCTION,
    ...sections,
    ['## Objects', ...objects].join('\n\n'),
  );
}

const INTRODUCTION = `The same as \`GET /openapi.json\` of a running control plane. A request carries its key as
\`Authorization: Bearer …\` or \`x-api-key\`; times are ISO 8601 in UTC; what ends in \`_ms\` is in milliseconds. Every
answer has an \`x-request-id\` (the request's own, if it is sane). Refusals are listed in [errors.md](errors.md).

**Needs** names what the credential has to be: any \`key\`, a key with a scope (\`inference\`, \`jobs\`, \`agents\`,
\`nodes:read\`), or one with the role \`admin\`, which may do everything. Without it a key sees, lists and cancels only what
it has made itself. \`none\`: no credential. \`metrics\`: asked from this machine directly, or with
\`FLOTILLA_METRICS_TOKEN\`. \`enrolment\`: a token (\`fle_…\`) in the body. \`node\`: a node's credential (\`fln_…\`).

A list is paged: \`limit\` bounds it, and \`next_after\` of one page is \`after\` of the next.

An answer to inference also says how it came about: \`x-flotilla-attempts\`, \`x-flotilla-queue-ms\`, \`x-ratelimit-*\`
where the key has a limit, and \`x-flotilla-node\` for a key with \`nodes:read\`. Requests with the same
\`x-session-affinity\` (or \`prompt_cache_key\`) go to the same node while it has room.`;

const AREAS: readonly (readonly [prefix: string, title: string])[] = [
  ['/v1/', 'OpenAI'],
  ['/api/v1/whoami', 'Keys'],
  ['/api/v1/keys', 'Keys'],
  ['/api/v1/enrolment-tokens', 'Enrolment tokens'],
  ['/api/v1/nodes', 'Nodes'],
  ['/api/v1/jobs', 'Jobs'],
  ['/api/v1/usage', 'Accounting'],
  ['/node/v1/', 'For nodes'],
];

function areaOf(path: string): string {
  return AREAS.find(([prefix]) => path.startsWith(prefix))?.[1] ?? 'Operations';
}

function routeText(path: string, operation: Operation): string {
  const route: Route = ROUTES[operation.operationId];
  const query = operation.parameters.filter((parameter) => parameter.in === 'query');
  const body = operation.requestBody;
  return [
    `### ${route.method} ${path}`,
    `${operation.summary} Needs: ${code(route.needs)}.`,
    ...(query.length === 0 ? [] : [`Query:\n\n${fieldTable(query.map(queryField))}`]),
    ...(body === undefined ? [] : [bodyText(body)]),
    answerText(operation),
  ].join('\n\n');
}

function queryField({ name, schema }: Operation['parameters'][number]): Field {
  const { description = '' } = schema;
  return { path: name, type: typeText(schema), required: false, default: schema.default, description };
}

function bodyText({ required, content }: NonNullable<Operation['requestBody']>): string {
  const { schema } = content['application/json'];
  const label = required ? 'Body' : 'Body (may be left out)';
  if (schema.$ref !== undefined) return `${label}: ${typeText(schema)}.`;
  return `${label}:\n\n${fieldTable(fieldsOf(schema))}`;
}

function answerText({ operationId, responses }: Operation): string {
  const [status = '', answer] = Object.entries(responses)[0] ?? [];
  const schema = answer?.content?.['application/json'].schema;
  const label = `Answer: ${code(status)}`;
  if (schema === undefined) return `${label}${UNTYPED[operationId] ?? ' without a body.'}`;
  if (schema.$ref !== undefined) return `${label} with ${typeText(schema)}.`;
  const items = schema.properties?.['data'];
  if (items !== undefined && 'next_after' in (schema.properties ?? {})) {
    return `${label} with \`{ data, next_after }\`, \`data\` a ${typeText(items)}.`;
  }
  return `${label} with:\n\n${fieldTable(fieldsOf(schema))}`;
}

const OF_BACKEND = ' as the model server sent it: JSON, or events where `stream` is true.';
const UNTYPED: { readonly [Name in RouteName]?: string } = {
  metrics: " in Prometheus' text format.",
  openapi: ' with an OpenAPI 3.1 document.',
  chat: OF_BACKEND,
  completions: OF_BACKEND,
  embeddings: OF_BACKEND,
  nodeRequest: ' with the bytes that the client sent.',
  link: ', and the WebSocket: [node-link.md](node-link.md).',
};

function fieldTable(fields: Field[]): string {
  const rows = fields.map((field) => [
    code(field.path),
    field.type,
    field.default === undefined ? (field.required ? 'always' : '') : code(JSON.stringify(field.default)),
    field.description,
  ]);
  return table(['Field', 'Type', 'Given, or default', 'Meaning'], rows);
}
