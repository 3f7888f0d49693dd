import { expect, test } from 'vitest';
import { withUsageAsked } from './usage-request.ts';

test.each([
  [
    '{"model":"m","seed":9007199254740993}',
    '{"model":"m","seed":9007199254740993,"stream_options":{"include_usage":true}}',
  ],
  ['{"stream_options":null,"n":1 }', '{"stream_options":{"include_usage":true},"n":1 }'],
  ['{"stream_options":{} }', '{"stream_options":{"include_usage":true} }'],
  ['{"stream_options":{"x":1}}', '{"stream_options":{"x":1,"include_usage":true}}'],
  ['{"stream_options":{"include_usage":null,"x":1}}', '{"stream_options":{"include_usage":true,"x":1}}'],
  ['{"stream_options":7}', undefined],
  ['not json', undefined],
])('asks for usage in %s', (body, asked) => {
  const changed = withUsageAsked(Buffer.from(body));
  expect(changed === undefined ? undefined : Buffer.from(changed).toString()).toBe(asked);
});
