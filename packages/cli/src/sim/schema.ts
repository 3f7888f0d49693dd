type Schema = Record<string, unknown>;

/** Deep enough for any schema people write; what refers to itself without end stops here. */
const DEPTH_MAX = 24;

/**
 * The smallest value that fits a JSON Schema: required members only, first choices, shortest lengths. It covers what
 * tools and response formats are written in; `pattern` and conditions are not looked at.
 */
export function minimalInstance(schema: unknown): unknown {
  return instance(schema, schema, DEPTH_MAX);
}

function instance(schema: unknown, root: unknown, depth: number): unknown {
  if (!isSchema(schema) || depth === 0) return null;
  if (typeof schema['$ref'] === 'string') return instance(resolve(schema['$ref'], root), root, depth - 1);
  if ('const' in schema) return schema['const'];
  if (Array.isArray(schema['enum'])) return schema['enum'][0] ?? null;
  if ('default' in schema) return schema['default'];
  for (const union of ['anyOf', 'oneOf'] as const) {
    const choices = schema[union];
    if (Array.isArray(choices)) return instance(choices[0], root, depth - 1);
  }
  if (Array.isArray(schema['allOf'])) return instance(merge(schema, schema['allOf'], root), root, depth - 1);
  return ofType(schema, root, depth);
}

function ofType(schema: Schema, root: unknown, depth: number): unknown {
  const declared = schema['type'];
  const type: unknown = Array.isArray(declared) ? declared[0] : declared;
  switch (type ?? ('properties' in schema ? 'object' : 'string')) {
    case 'object':
      return object(schema, root, depth);
    case 'array':
      return array(schema, root, depth);
    case 'integer':
      return Math.ceil(number(schema, 1));
    case 'number':
      return number(schema, Number.EPSILON);
    case 'boolean':
      return false;
    case 'null':
      return null;
    default:
      return text(schema);
  }
}

function object(schema: Schema, root: unknown, depth: number): Schema {
  const properties = isSchema(schema['properties']) ? schema['properties'] : {};
  const required: unknown[] = Array.isArray(schema['required']) ? schema['required'] : [];
  const names = required.filter((name) => typeof name === 'string');
  return Object.fromEntries(names.map((name) => [name, instance(properties[name] ?? {}, root, depth - 1)]));
}

function array(schema: Schema, root: unknown, depth: number): unknown[] {
  const fixed: unknown[] = Array.isArray(schema['prefixItems']) ? schema['prefixItems'] : [];
  const length = Math.max(fixed.length, whole(schema['minItems']));
  return Array.from({ length }, (_, index) =>
    instance(fixed[index] ?? schema['items'] ?? {}, root, depth - 1),
  );
}

function number(schema: Schema, step: number): number {
  const { minimum, exclusiveMinimum, maximum, exclusiveMaximum, multipleOf } = schema;
  let least = typeof minimum === 'number' ? minimum : undefined;
  if (typeof exclusiveMinimum === 'number') {
    least = exclusiveMinimum + step * Math.max(1, Math.abs(exclusiveMinimum));
  }
  if (least === undefined) {
    least = 0;
    if (typeof maximum === 'number') least = Math.min(least, maximum);
    if (typeof exclusiveMaximum === 'number' && least >= exclusiveMaximum) least = exclusiveMaximum - 1;
  }
  return typeof multipleOf === 'number' && multipleOf > 0
    ? Math.ceil(least / multipleOf) * multipleOf
    : least;
}

const FORMATS: Record<string, string> = {
  'date-time': '2000-01-01T00:00:00Z',
  date: '2000-01-01',
  time: '00:00:00Z',
  email: 'simulated@example.com',
  uri: 'https://example.com/simulated',
  uuid: '00000000-0000-4000-8000-000000000000',
};

function text(schema: Schema): string {
  const format = typeof schema['format'] === 'string' ? FORMATS[schema['format']] : undefined;
  if (format !== undefined) return format;
  const most = typeof schema['maxLength'] === 'number' ? schema['maxLength'] : Number.POSITIVE_INFINITY;
  return 'simulated'.slice(0, most).padEnd(whole(schema['minLength']), '.');
}

/** `#/$defs/name` and the like: a JSON pointer into the same document. */
function resolve(reference: string, root: unknown): unknown {
  let value = root;
  for (const part of reference.replace(/^#\/?/, '').split('/')) {
    if (part === '') continue;
    if (!isSchema(value)) return undefined;
    value = value[part.replaceAll('~1', '/').replaceAll('~0', '~')];
  }
  return value;
}

function merge(schema: Schema, parts: unknown[], root: unknown): Schema {
  const { allOf: _, ...merged } = schema;
  for (const part of parts) {
    const found = isSchema(part) && typeof part['$ref'] === 'string' ? resolve(part['$ref'], root) : part;
    if (!isSchema(found)) continue;
    const properties = { ...asSchema(merged['properties']), ...asSchema(found['properties']) };
    const required = [...asList(merged['required']), ...asList(found['required'])];
    Object.assign(merged, found, { properties, required });
  }
  return merged;
}

function isSchema(value: unknown): value is Schema {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
const asSchema = (value: unknown): Schema => (isSchema(value) ? value : {});
const asList = (value: unknown): unknown[] => (Array.isArray(value) ? value : []);
const whole = (value: unknown): number => (typeof value === 'number' && value > 0 ? Math.ceil(value) : 0);
