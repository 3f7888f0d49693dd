import { addMember, replaceMember, topLevelMember } from '../json-splice.ts';

const ASK = Buffer.from('{"include_usage":true}');
const TRUE = Buffer.from('true');
const NULL = 'null';

/**
 * The same request with `stream_options.include_usage` asked for; every other byte stays. Undefined when the body
 * leaves no place for it: then it goes as it came.
 */
export function withUsageAsked(body: Uint8Array): Uint8Array | undefined {
  try {
    const range = topLevelMember(body, 'stream_options');
    if (range === undefined) return addMember(body, 'stream_options', ASK);
    const options = body.subarray(range.start, range.end);
    if (Buffer.from(options).toString('latin1') === NULL) return replaceMember(body, 'stream_options', ASK);
    if (options[0] !== 0x7b) return undefined;
    const asked =
      topLevelMember(options, 'include_usage') === undefined
        ? addMember(options, 'include_usage', TRUE)
        : replaceMember(options, 'include_usage', TRUE);
    return replaceMember(body, 'stream_options', asked);
  } catch {
    return undefined;
  }
}
