import { describe, expect, test } from 'vitest';
import { minimalInstance } from './schema.ts';

describe('the minimal instance of a schema', () => {
  test('has the required members only, each of its type', () => {
    const schema = {
      type: 'object',
      properties: {
        city: { type: 'string' },
        days: { type: 'integer', minimum: 3 },
        share: { type: 'number', exclusiveMinimum: 0 },
        units: { enum: ['celsius', 'kelvin'] },
        tags: { type: 'array', items: { type: 'string', minLength: 12 }, minItems: 2 },
        home: { $ref: '#/$defs/place' },
        note: { type: ['null', 'string'] },
        unasked: { type: 'string' },
      },
      required: ['city', 'days', 'share', 'units', 'tags', 'home', 'note'],
      $defs: { place: { type: 'object', properties: { ok: { type: 'boolean' } }, required: ['ok'] } },
    };
    const value = minimalInstance(schema) as Record<string, unknown>;
    expect(value).toEqual({
      city: 'simulated',
      days: 3,
      share: expect.any(Number),
      units: 'celsius',
      tags: ['simulated...', 'simulated...'],
      home: { ok: false },
      note: null,
    });
    expect(value['share']).toBeGreaterThan(0);
  });

  test('takes the first of several, and the sum of allOf', () => {
    expect(minimalInstance({ anyOf: [{ const: 7 }, { type: 'string' }] })).toBe(7);
    const parts = [
      { properties: { a: { type: 'boolean' } }, required: ['a'] },
      { properties: { b: { type: 'integer', multipleOf: 5, minimum: 1 } }, required: ['b'] },
    ];
    expect(minimalInstance({ type: 'object', allOf: parts })).toEqual({ a: false, b: 5 });
  });

  test('ends for a schema that contains itself', () => {
    const node = { type: 'object', properties: { next: { $ref: '#' } }, required: ['next'] };
    expect(JSON.stringify(minimalInstance(node))).toContain('null');
  });
});
