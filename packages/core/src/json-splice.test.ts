import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { addMember, replaceMember, topLevelMember } from './json-splice.ts';

const bytes = (text: string) => Buffer.from(text);
const text = (value: Uint8Array) => Buffer.from(value).toString();
const at = (json: string, name: string) => {
  const range = topLevelMember(bytes(json), name);
  return range && text(bytes(json).subarray(range.start, range.end));
};

/** Spells a string with some characters escaped, as a client may. */
const spell = (value: string, escape_at: number) =>
  `"${Array.from(value)
    .map((character, index) =>
      index === escape_at && character.length === 1
        ? `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`
        : JSON.stringify(character).slice(1, -1),
    )
    .join('')}"`;
const blank = fc.constantFrom('', ' ', '\n\t', '\r\n  ');
const name = fc.oneof(fc.constantFrom('model', 'stream', 'é', '', 'mod"el', '😀', 'a\\'), fc.string());
const object = fc
  .array(fc.tuple(name, fc.nat(6), fc.json({ maxDepth: 3 }), blank, blank), { maxLength: 6 })
  .map((members) => ({
    members,
    json: `{${members.map(([key, escape, value, a, b]) => `${a}${spell(key, escape)}${b}:${a}${value}${b}`).join(',')}}`,
  }));

describe('topLevelMember', () => {
  test('finds what JSON.parse would: the last of a name, however it is spelled', () => {
    fc.assert(
      fc.property(object, name, blank, ({ json, members }, extra, space) => {
        const document = `${space}${json}${space}`;
        for (const wanted of [extra, ...members.map(([key]) => key)]) {
          const raw = at(document, wanted);
          const parsed = new Map(Object.entries(JSON.parse(document) as object));
          // `__proto__` is a member like any other to JSON.parse.
          expect(raw === undefined ? undefined : JSON.stringify(JSON.parse(raw))).toBe(
            parsed.has(wanted) ? JSON.stringify(parsed.get(wanted)) : undefined,
          );
        }
      }),
      { numRuns: 500 },
    );
  });

  test('finds an escaped spelling, and no nested or quoted one', () => {
    expect(at('{"mod\\u0065l":"a"}', 'model')).toBe('"a"');
    expect(at('{"a":{"model":1},"b":"\\"model\\":2","c":["model"]}', 'model')).toBeUndefined();
    expect(at('{}', 'model')).toBeUndefined();
  });
});

describe('replaceMember and addMember', () => {
  test('change nothing but the member', () => {
    fc.assert(
      fc.property(object, name, fc.json({ maxDepth: 1 }), ({ json }, wanted, value) => {
        const before = JSON.parse(json) as Record<string, unknown>;
        const replaced = text(replaceMember(bytes(json), wanted, bytes(value)));
        const added = text(addMember(bytes(json), wanted, bytes(value)));
        const had = Object.hasOwn(before, wanted);
        const expected = new Map(Object.entries(before)).set(wanted, JSON.parse(value));
        expect(new Map(Object.entries(JSON.parse(added) as object))).toEqual(expected);
        const changed = new Map(Object.entries(JSON.parse(replaced) as object));
        expect(had ? changed : replaced).toEqual(had ? expected : json);
      }),
      { numRuns: 500 },
    );
  });

  test('keep 64-bit integers, whitespace and other duplicates byte for byte', () => {
    const json = '{ "seed": 9007199254740993 ,"model":"a", "x":1.0e0, "mod\\u0065l" :\n"b","x":"ü😀" }';
    expect(text(replaceMember(bytes(json), 'model', bytes('"qwen"')))).toBe(
      '{ "seed": 9007199254740993 ,"model":"qwen", "x":1.0e0, "mod\\u0065l" :\n"qwen","x":"ü😀" }',
    );
    expect(text(addMember(bytes(json), 'n', bytes('1')))).toBe(`${json.slice(0, -2)},"n":1 }`);
    expect(text(addMember(bytes(' {\n} '), 'n', bytes('{}')))).toBe(' {"n":{}\n} ');
  });

  test.each([
    ['base64', 'A'.repeat(16_000_000)],
    ['escaped quotes', '\\"'.repeat(8_000_000)],
    ['backslashes', '\\\\'.repeat(8_000_000)],
  ])(
    'a body of 16 MB of %s takes a moment',
    (_kind, filler) => {
      const json = bytes(`{"messages":[{"content":"${filler}"}],"model":"a"}`);
      const range = topLevelMember(json, 'model');
      expect(range).toEqual({ start: json.length - 4, end: json.length - 1 });
    },
    2000,
  );
});
