import assert from 'node:assert/strict';
import type { Message } from './conversation.ts';

/** What the peer of before acts on: it must say the same today. The rest must be there, in the same type. */
const SAID_ALIKE = new Set(
  'type kind operation streaming add_usage backend model body_length attempt outcome started retryable code status length verdict'.split(
    ' ',
  ),
);

/** What of a recorded message is missing in today's, or is of another kind there. A new field is nobody's business. */
export function unlike(recorded: unknown, today: unknown, path = ''): string[] {
  if (recorded === null) return [];
  if (Array.isArray(recorded)) {
    if (!Array.isArray(today)) return [`${path} is no list`];
    return recorded.flatMap((item, at) =>
      at < today.length ? unlike(item, today[at], `${path}[${at}]`) : [],
    );
  }
  if (typeof recorded === 'object') {
    if (typeof today !== 'object' || today === null) return [`${path} is no object`];
    return Object.entries(recorded).flatMap(([name, value]) =>
      unlike(value, (today as Record<string, unknown>)[name], `${path}.${name}`),
    );
  }
  if (typeof recorded !== typeof today) return [`${path} is ${typeof today}, not ${typeof recorded}`];
  const name = path.split('.').at(-1)!;
  return SAID_ALIKE.has(name) && recorded !== today
    ? [`${path} is ${JSON.stringify(today)}, not ${JSON.stringify(recorded)}`]
    : [];
}

/** Today's message has all of what the peer of before relies on. */
export function assertAlike(recorded: unknown, today: unknown): void {
  const differences = unlike(recorded, today);
  assert(differences.length === 0, `${differences.join('; ')} in ${JSON.stringify(today)}`);
}

/** Maps with names of the operator's own: a field more would be a label more. */
const MAPS = new Set(['labels', 'host']);

/** The message as a peer of a later minor may send it: with fields that nobody knows yet, at every level. */
export function asOfLater(message: Message): Message {
  return grown(message, '') as Message;
}

function grown(value: unknown, name: string): unknown {
  if (Array.isArray(value)) return value.map((item) => grown(item, name));
  if (typeof value !== 'object' || value === null || MAPS.has(name)) return value;
  const fields = Object.entries(value).map(([key, field]) => [key, grown(field, key)]);
  return { ...Object.fromEntries(fields), of_a_later_minor: { depth: 1 } };
}
