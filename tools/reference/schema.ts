import { z } from 'zod';
import { code } from './markdown.ts';

/** The part of JSON Schema that our own schemas come to. */
export interface JsonSchema {
  $ref?: string;
  type?: string | string[];
  format?: string;
  description?: string;
  default?: unknown;
  const?: string | number;
  enum?: (string | number)[];
  anyOf?: JsonSchema[];
  items?: JsonSchema;
  properties?: Record<string, JsonSchema>;
  required?: string[];
  additionalProperties?: JsonSchema | boolean;
  minimum?: number;
  exclusiveMinimum?: number;
  maximum?: number;
  maxLength?: number;
}

export interface Field {
  /** `pools[].capacity`: where it is, from the outermost object. */
  path: string;
  type: string;
  required: boolean;
  default: unknown;
  description: string;
}

/** What a reader gets, or, where a transform makes that unknowable, what a writer gives. */
export function jsonSchemaOf(schema: z.ZodType): JsonSchema {
  const output = z.toJSONSchema(schema, { io: 'output', unrepresentable: 'any' }) as JsonSchema;
  if (typeText(output) !== ANYTHING) return output;
  return z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' }) as JsonSchema;
}

/** Every field of an object, those of objects inside it too. */
export function fieldsOf(schema: JsonSchema, prefix = ''): Field[] {
  return Object.entries(schema.properties ?? {}).flatMap(([name, member]) => {
    const path = `${prefix}${name}`;
    const own = withoutNull(member);
    const inner = own.type === 'array' ? (own.items ?? {}) : own;
    return [
      {
        path,
        type: typeText(member),
        required: schema.required?.includes(name) ?? false,
        default: member.default,
        description: member.description ?? own.description ?? '',
      },
      ...fieldsOf(inner, own.type === 'array' ? `${path}[].` : `${path}.`),
    ];
  });
}

function withoutNull(schema: JsonSchema): JsonSchema {
  return schema.anyOf?.find(({ type }) => type !== 'null') ?? schema;
}

const ANYTHING = 'anything';

export function typeText(schema: JsonSchema): string {
  if (schema.$ref !== undefined) return link(schema.$ref);
  if (schema.anyOf !== undefined) return schema.anyOf.map(typeText).join(' or ');
  if (schema.const !== undefined) return code(String(schema.const));
  if (schema.enum !== undefined) return schema.enum.map((value) => code(String(value))).join(', ');
  if (Array.isArray(schema.type))
    return schema.type.map((type) => typeText({ ...schema, type })).join(' or ');
  switch (schema.type) {
    case 'integer':
    case 'number':
      return `${schema.type === 'integer' ? 'whole number' : 'number'}${rangeText(schema)}`;
    case 'boolean':
      return '`true`, `false`';
    case 'string':
      return stringText(schema);
    case 'array':
      return `list of ${typeText(schema.items ?? {})}`;
    case 'object':
      return isMap(schema) ? `map of text to ${typeText(schema.additionalProperties)}` : 'object';
    default:
      return schema.type ?? ANYTHING;
  }
}

function stringText({ format, maxLength }: JsonSchema): string {
  if (format === 'date-time') return 'time';
  if (format === 'uri') return 'address';
  return maxLength === undefined ? 'text' : `text, ${maxLength} characters at most`;
}

function isMap(schema: JsonSchema): schema is JsonSchema & { additionalProperties: JsonSchema } {
  return schema.properties === undefined && typeof schema.additionalProperties === 'object';
}

function rangeText({ minimum, exclusiveMinimum, maximum }: JsonSchema): string {
  const least = minimum ?? (exclusiveMinimum === undefined ? undefined : exclusiveMinimum + 1);
  const most = maximum === Number.MAX_SAFE_INTEGER ? undefined : maximum;
  if (most !== undefined) return `, ${least ?? '…'} to ${most}`;
  return least === undefined || least === 0 || least === Number.MIN_SAFE_INTEGER ? '' : `, ${least} at least`;
}

function link(ref: string): string {
  const name = ref.slice(ref.lastIndexOf('/') + 1);
  return `[${name}](#${name.toLowerCase()})`;
}
