import { ROUTES } from '@flotilla/protocol';
import { expect, test } from 'vitest';
import { openapiDocument } from './openapi.ts';

type Operation = {
  operationId: string;
  parameters: { name: string; in: string }[];
  requestBody?: { required: boolean };
  responses: Record<string, unknown>;
};
const document = openapiDocument('https://a.example') as {
  openapi: string;
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: Record<string, unknown>; responses: Record<string, unknown> };
};
const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) => ({ path, method, operation })),
);

test('has every route of the table, once', () => {
  expect(operations.map(({ operation }) => operation.operationId).sort()).toEqual(Object.keys(ROUTES).sort());
  expect(document.openapi).toMatch(/^3\.1\./);
});

test('every reference leads somewhere, and none to a schema’s own definitions', () => {
  const text = JSON.stringify(document);
  const references = [...text.matchAll(/"\$ref":"([^"]+)"/g)].map((match) => match[1]!);
  expect(references.length).toBeGreaterThan(20);
  for (const reference of references) {
    const [root, ...steps] = reference.split('/');
    const target = steps.reduce<unknown>((at, step) => (at as Record<string, unknown>)?.[step], document);
    expect([reference, root, typeof target]).toEqual([reference, '#', 'object']);
  }
  expect(text).not.toContain('$defs');
});

test('every hole of a path is a parameter, and every parameter of a path a hole', () => {
  for (const { path, operation } of operations) {
    const holes = [...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1]);
    const declared = operation.parameters
      .filter((parameter) => parameter.in === 'path')
      .map(({ name }) => name);
    expect([path, ...declared]).toEqual([path, ...holes]);
    expect(path).not.toMatch(/[:*]/);
  }
});

test('every operation has a success and the one error', () => {
  for (const { path, operation } of operations) {
    const statuses = Object.keys(operation.responses);
    expect([path, ...statuses]).toEqual([path, expect.stringMatching(/^(101|2\d\d)$/), 'default']);
  }
});

test('a body whose fields all have defaults may be left out', () => {
  expect(document.paths['/api/v1/nodes/{id}/drain']?.['post']?.requestBody?.required).toBe(false);
  expect(document.paths['/api/v1/keys']?.['post']?.requestBody?.required).toBe(true);
});
