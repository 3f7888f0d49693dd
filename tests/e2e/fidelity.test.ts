import { randomBytes } from 'node:crypto';
import type { ServerResponse } from 'node:http';
import { setImmediate as nextTurn } from 'node:timers/promises';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  chatAnswer,
  chatChunk,
  DONE,
  type ScriptedBackend,
  SSE,
  USAGE_CHUNK,
} from '../support/scripted-backend.ts';
import { type World, openWorld } from '../support/world.ts';

/** What goes in comes out: byte for byte, in both directions, through gateway, link and daemon as they are. */
let world: World;
let backend: ScriptedBackend;
const APP = 'https://app.example';
const JSON_TYPE = { 'content-type': 'application/json' };

beforeAll(async () => {
  world = await openWorld({ heartbeat_ms: 2000, env: { FLOTILLA_CORS_ORIGINS: APP } });
  backend = await world.backend(() => undefined, ['scripted', 'llama3:latest', 'text-embed']);
  await world.node({ name: 'box', backends: [{ url: backend.url, slots: 8 }] });
}, 60_000);
afterAll(() => world.close());

interface Asked {
  path?: string;
  headers?: Record<string, string>;
}

async function ask(body: string | Buffer, { path = 'chat/completions', headers = {} }: Asked = {}) {
  const reply = await fetch(`${world.plane.url}/v1/${path}`, {
    method: 'POST',
    headers: { authorization: `Bearer ${world.plane.admin_key}`, ...JSON_TYPE, ...headers },
    body,
  });
  return { status: reply.status, headers: reply.headers, body: Buffer.from(await reply.arrayBuffer()) };
}

const lastRequest = () => backend.requests.at(-1)!;

// ── Streams ──

/** What the client says of `stream_options.include_usage`. */
const MODES = ['open', 'true', 'false'] as const;
type Mode = (typeof MODES)[number];

/** A part of an event stream; a backend sends `usage` parts only to who asked for them. */
interface Part {
  bytes: Buffer;
  usage?: boolean;
}

function streamRequest(mode: Mode): string {
  const options = mode === 'open' ? '' : `,"stream_options":{"include_usage":${mode}}`;
  return `{"model":"scripted","messages":[],"stream":true${options}}`;
}

/** Sends the parts a request has asked for, cut where `cut` says, and returns what the client got and should have got. */
async function throughGateway(
  parts: Part[],
  mode: Mode,
  cut: (whole: Buffer) => Buffer[] = (whole) => [whole],
): Promise<{ got: Buffer; wanted: Buffer }> {
  backend.answer = async ({ body }, response) => {
    const asked = (JSON.parse(body.toString()) as { stream_options?: { include_usage?: boolean } })
      .stream_options?.include_usage;
    const whole = join(parts.filter((part) => part.usage !== true || asked === true));
    response.writeHead(200, SSE);
    await writeAll(response, cut(whole));
    response.end();
  };
  const { status, body } = await ask(streamRequest(mode));
  expect(status).toBe(200);
  return { got: body, wanted: join(parts.filter((part) => part.usage !== true || mode === 'true')) };
}

function join(parts: Part[]): Buffer {
  return Buffer.concat(parts.map(({ bytes }) => bytes));
}

async function writeAll(response: ServerResponse, pieces: Buffer[]): Promise<void> {
  for (const [index, piece] of pieces.entries()) {
    if (piece.length > 0) response.write(piece);
    // Some pieces share a packet, others do not.
    if (index % 3 === 0) await nextTurn();
  }
}

/** Where they first differ; undefined when they are the same. Megabytes are not printed. */
function difference(got: Buffer, wanted: Buffer): string | undefined {
  if (got.equals(wanted)) return undefined;
  let at = 0;
  while (at < got.length && got[at] === wanted[at]) at++;
  const near = (bytes: Buffer) => JSON.stringify(bytes.toString('latin1', Math.max(0, at - 60), at + 60));
  return `${got.length} bytes instead of ${wanted.length}; at ${at} stands ${near(got)} instead of ${near(wanted)}`;
}

const text = (value: string): Part => ({ bytes: Buffer.from(value) });
const usage = (value = USAGE_CHUNK): Part => ({ bytes: Buffer.from(value), usage: true });
const withEnds = (eol: string, parts: Part[]): Part[] =>
  parts.map((part) => ({ ...part, bytes: Buffer.from(part.bytes.toString().replaceAll('\n', eol)) }));
const UNICODE = 'aé漢😀👩‍👩‍👧 "\\"\u2028';
const everyByte = (whole: Buffer) => Array.from(whole, (_, index) => whole.subarray(index, index + 1));

const PLAIN = [text(chatChunk('Hello')), text(chatChunk(UNICODE, 'stop')), usage(), text(DONE)];

const STREAMS: Record<string, Part[]> = {
  'LF line ends': PLAIN,
  'CRLF line ends': withEnds('\r\n', PLAIN),
  'CR line ends': withEnds('\r', PLAIN),
  'comments between and in events': [
    text(': ping\n\n:\n\n'),
    text(`: before\n${chatChunk('one')}`),
    text(`${chatChunk('two', 'stop').trimEnd()}\n: after\n\n`),
    usage(`: of the usage\n${USAGE_CHUNK}`),
    text(`: end\n\n${DONE}: gone\n\n`),
  ],
  '`data:` without a blank, with two, with a tab': [
    text(chatChunk('a').replace('data: ', 'data:')),
    text(chatChunk('b').replace('data: ', 'data:  ')),
    text(chatChunk('c', 'stop').replace('data: ', 'data:\t')),
    usage(USAGE_CHUNK.replace('data: ', 'data:')),
    text('data:[DONE]\n\n'),
  ],
  'data of several lines': [
    text(`${lines(chatChunk('a'))}${lines(chatChunk('b', 'stop'))}`),
    usage(lines(USAGE_CHUNK)),
    text(DONE),
  ],
  'other fields, empty lines, a byte order mark': [
    text('\uFEFFretry: 100\n\n\n\n'),
    text(`event: message\nid: 7\n${chatChunk('a')}`),
    text(`data\ndata:\n\nnonsense\n\n${chatChunk('b', 'stop')}`),
    usage(`event: message\n${USAGE_CHUNK}`),
    text(DONE),
  ],
  'no empty line after [DONE]': [text(chatChunk('a', 'stop')), usage(), text('data: [DONE]')],
  'text that looks like the end, or like usage': [
    text(chatChunk('data: [DONE]')),
    text(chatChunk('\n\ndata: [DONE]\n\n')),
    text(chatChunk('{"choices":[],"usage":{"prompt_tokens":1}}')),
    text('data: "[DONE"\n\ndata: ["DONE"]\n\n'),
    text(chatChunk('error', 'stop')),
    text(DONE),
  ],
  'bytes that are no UTF-8': [
    { bytes: Buffer.from(chatChunk('caf\xe9 \xff\xfe', 'stop'), 'latin1') },
    usage(),
    text(DONE),
  ],
  'usage in every event, and in the last one of its own': [
    text(
      'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',
    ),
    text('data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":null}\n\n'),
    usage(
      'data: {"choices": [ ], "usage": {"prompt_tokens":1,"completion_tokens":2,"vendor":{"x":[1]}}}\n\n',
    ),
    text(DONE),
  ],
  'tool calls, logprobs, reasoning, refusals and fields of a vendor': [
    text(
      'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"f","arguments":""}}]}}]}\n\n',
    ),
    text(
      'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\\"a\\":\\"\\\\u00e9"}}]}}]}\n\n',
    ),
    text(
      'data: {"choices":[{"index":0,"delta":{"content":"x"},"logprobs":{"content":[{"token":"x","logprob":-0.10000000000000001,"bytes":[120],"top_logprobs":[]}]}}]}\n\n',
    ),
    text(
      'data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm","refusal":null}}],"x_vendor":12345678901234567890}\n\n',
    ),
    text('data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}\n\n'),
    usage(),
    text(DONE),
  ],
};

/** The same event, its JSON over several lines. */
function lines(event: string): string {
  const value: unknown = JSON.parse(event.slice('data: '.length));
  return `${JSON.stringify(value, null, 1)
    .split('\n')
    .map((line) => `data: ${line}\n`)
    .join('')}\n`;
}

describe.each(MODES)('a stream whose client leaves include_usage %s', (mode) => {
  it.each(Object.keys(STREAMS))('is what the backend sent: %s', async (name) => {
    const whole = await throughGateway(STREAMS[name]!, mode);
    expect(difference(whole.got, whole.wanted)).toBeUndefined();
    const bytewise = await throughGateway(STREAMS[name]!, mode, everyByte);
    expect(difference(bytewise.got, bytewise.wanted)).toBeUndefined();
  });

  it('is what the backend sent, cut in two at every position', async () => {
    const event = Buffer.from(chatChunk(UNICODE));
    const cuts = Array.from(event, (_, at) => [event.subarray(0, at), event.subarray(at)]).flat();
    const parts = [...cuts.map((bytes) => ({ bytes })), usage(), text(DONE)];
    const { got, wanted } = await throughGateway(parts, mode, (whole) => [
      ...cuts,
      ...everyByte(whole.subarray(Buffer.concat(cuts).length)),
    ]);
    expect(difference(got, wanted)).toBeUndefined();
  });

  it('brings events of 1 and 3 MB', async () => {
    const parts = [
      text(chatChunk('é'.repeat(500_000))),
      text(chatChunk('x'.repeat(3_000_000), 'stop')),
      usage(),
      text(DONE),
    ];
    const { got, wanted } = await throughGateway(parts, mode, (whole) => slices(whole, 37_123));
    expect(difference(got, wanted)).toBeUndefined();
  });
});

function slices(whole: Buffer, size: number): Buffer[] {
  return Array.from({ length: Math.ceil(whole.length / size) }, (_, index) =>
    whole.subarray(index * size, (index + 1) * size),
  );
}

const words = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 40 }),
  fc.string({ unit: 'grapheme', maxLength: 200 }),
  fc.constantFrom(
    'data: [DONE]',
    '\n\ndata: [DONE]\n\n',
    '"usage":{',
    'error',
    '[DONE]',
    '\\',
    '\r\n\r',
    '"',
  ),
);
const delta = words.map((content): Part => text(chatChunk(content)));
const escaped = words.map(
  (content): Part => text(chatChunk(content).replace(/[^\n -~]/gu, (c) => JSON.stringify(c).slice(1, -1))),
);
const spread = words.map((content): Part => text(lines(chatChunk(content))));
const fields = fc
  .constantFrom(': ping\n\n', '\n', 'event: x\ndata: 1\n\n', 'data:\n\n', 'retry: 5\n\n', 'id\n\n')
  .map(text);
const counted = fc
  .constantFrom(USAGE_CHUNK, lines(USAGE_CHUNK), USAGE_CHUNK.replace('data: ', 'data:'))
  .map(usage);
const eventStream = fc
  .tuple(
    fc.array(fc.oneof(delta, escaped, spread, fields), { maxLength: 12 }),
    fc.option(counted, { nil: text('') }),
    fc.constantFrom(DONE, 'data:[DONE]\n\n', 'data: [DONE]\n', 'data: [DONE]', `${DONE}: bye\n\n`).map(text),
    fc.constantFrom('\n', '\r\n', '\r'),
  )
  .map(([parts, last, done, eol]) => withEnds(eol, [...parts, last, done]));

it('any stream in any pieces is what the backend sent', async () => {
  await fc.assert(
    fc.asyncProperty(
      eventStream,
      fc.constantFrom(...MODES),
      fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 30 }),
      async (parts, mode, cuts) => {
        const { got, wanted } = await throughGateway(parts, mode, (whole) => {
          const at = [0, ...cuts.map((cut) => Math.floor(cut * whole.length)), whole.length].sort(
            (a, b) => a - b,
          );
          return at.slice(1).map((end, index) => whole.subarray(at[index], end));
        });
        expect(difference(got, wanted)).toBeUndefined();
      },
    ),
    { numRuns: 50 },
  );
});

// ── Whole answers ──

const ANSWERS: Record<string, string | Buffer> = {
  'in other bytes than UTF-8': Buffer.from(
    '{"choices":[{"message":{"content":"caf\xe9 \xff\xfe"}}]}',
    'latin1',
  ),
  'with blanks, escapes and long numbers':
    ' {"choices" : [ {"message":{"content":"\\u00e9\\ud800 \\/"}} ],\r\n"seed":9223372036854775807,"p":-0.0,"x":1E400,"x":2}\n',
  'with tool calls, logprobs and fields of a vendor': JSON.stringify({
    choices: [
      {
        index: 0,
        message: {
          role: 'assistant',
          content: null,
          tool_calls: [{ id: 'call_1', type: 'function', function: { name: 'f', arguments: '{"a":1}' } }],
        },
        logprobs: { content: [{ token: UNICODE, logprob: -1e-9, bytes: [97], top_logprobs: [] }] },
        finish_reason: 'tool_calls',
      },
    ],
    usage: { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3, x_cost: '0.1' },
    x_vendor: { timings: [0.1, 1e21] },
  }),
  'of 1 MiB less a byte': sized(1024 * 1024 - 1),
  'of 1 MiB': sized(1024 * 1024),
  'of 1 MiB and a byte': sized(1024 * 1024 + 1),
  'of 5 MB': sized(5_000_000),
};

function sized(bytes: number): string {
  const frame = chatAnswer('');
  return chatAnswer('x'.repeat(bytes - frame.length));
}

describe('a whole answer', () => {
  it.each(Object.keys(ANSWERS))('is what the backend sent: %s', async (name) => {
    const wanted = Buffer.from(ANSWERS[name]!);
    backend.answer = async (_request, response) => {
      response.writeHead(200, JSON_TYPE);
      await writeAll(response, slices(wanted, 50_021));
      response.end();
    };
    const { status, body } = await ask('{"model":"scripted","messages":[]}');
    expect(status).toBe(200);
    expect(difference(body, wanted)).toBeUndefined();
  });

  it.each([400, 402, 405, 409, 410, 413, 415, 418, 422, 451])(
    'that refuses with %i is passed on as it is',
    async (status) => {
      const wanted = `{"error" : {"message":"${UNICODE.replace(/["\\\u2028]/g, '')}","code":null}, "x":1}\n`;
      backend.answer = (_request, response) => {
        response
          .writeHead(status, { 'content-type': 'application/problem+json', 'retry-after': '7' })
          .end(wanted);
      };
      for (const request of [
        '{"model":"scripted","messages":[]}',
        streamRequest('open'),
        streamRequest('true'),
      ]) {
        const reply = await ask(request);
        expect(reply.status).toBe(status);
        expect(reply.headers.get('content-type')).toBe('application/problem+json');
        expect(reply.headers.get('retry-after')).toBe('7');
        expect(reply.body.toString()).toBe(wanted);
      }
    },
  );

  it('that refuses in words, or in none, is passed on as it is', async () => {
    for (const wanted of ['<p>no</p>', '']) {
      backend.answer = (_request, response) => {
        response.writeHead(400, { 'content-type': 'text/html' }).end(wanted);
      };
      const reply = await ask('{"model":"scripted","messages":[]}');
      expect([reply.status, reply.headers.get('content-type')]).toEqual([400, 'text/html']);
      expect(reply.body.toString()).toBe(wanted);
    }
  });
});

// ── Requests ──

const ASK_USAGE = '"stream_options":{"include_usage":true}';
const MESSAGES = '"messages":[{"role":"user","content":"Hello"}]';

/** A request as it is sent, and as the backend must get it where that is not the same. */
const REQUESTS: Record<string, [sent: string, received?: string]> = {
  'with blanks and line ends of its own': [` \r\n{ "model" :\t"scripted" ,\n${MESSAGES} }\n`],
  'with 64-bit integers and numbers as they are spelled': [
    `{"model":"scripted",${MESSAGES},"seed":9223372036854775807,"n":1.0,"top_p":1E-1,"x":-0,"y":123456789012345678901234567890}`,
  ],
  'with fields of a vendor': [
    `{"x_vendor":{"model":"other","stream":true,"stream_options":{}},"model":"scripted",${MESSAGES},"chat_template_kwargs":{"thinking":false}}`,
  ],
  'with duplicate keys': [
    `{"model":"other","model":"scripted","messages":7,${MESSAGES},"stop":"a","stop":"b"}`,
  ],
  'with escaped names and values': [
    `{"mod\\u0065l":"scr\\u0069pted","messages":[{"role":"user","content":"\\ud83d\\ude00 \\ud800 \\/ \\u0000"}]}`,
  ],
  'with text that looks like members': [
    `{"model":"scripted","messages":[{"role":"user","content":"\\",\\"model\\":\\"other\\",\\"stream\\":true}"}]}`,
  ],
  'with parts of several kinds': [
    `{"model":"scripted","messages":[{"role":"user","content":[{"type":"text","text":"${UNICODE.replace(/["\\]/g, '')}"},{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo=","detail":"low"}},{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}]}]}`,
  ],
  'that streams and leaves include_usage open': [
    `{"model":"scripted","stream":true,${MESSAGES}}`,
    `{"model":"scripted","stream":true,${MESSAGES},${ASK_USAGE}}`,
  ],
  'that streams and says so twice, in escapes': [
    `{"stream":false,"model":"scripted","str\\u0065am":true,${MESSAGES} \n}`,
    `{"stream":false,"model":"scripted","str\\u0065am":true,${MESSAGES},${ASK_USAGE} \n}`,
  ],
  'that streams with other options': [
    `{"stream":true,"stream_options":{ "x_vendor":9223372036854775807 },"model":"scripted",${MESSAGES}}`,
    `{"stream":true,"stream_options":{ "x_vendor":9223372036854775807,"include_usage":true },"model":"scripted",${MESSAGES}}`,
  ],
  'that streams with null for options': [
    `{"stream":true,"stream\\u005foptions":null,"model":"scripted",${MESSAGES}}`,
    `{"stream":true,"stream\\u005foptions":{"include_usage":true},"model":"scripted",${MESSAGES}}`,
  ],
  'that streams and wants usage': [`{"stream":true,${ASK_USAGE},"model":"scripted",${MESSAGES}}`],
  'that streams and wants none': [
    `{"stream":true,"stream_options": {"include_usage" :false},"model":"scripted",${MESSAGES}}`,
  ],
  'under a shorter name': [
    `{"model": "llama3","x":{"model":"llama3"},"user":"llama3",${MESSAGES},"seed":9223372036854775807}`,
    `{"model": "llama3:latest","x":{"model":"llama3"},"user":"llama3",${MESSAGES},"seed":9223372036854775807}`,
  ],
  'under a shorter name, after a byte order mark': [
    `\uFEFF{"model":"llama3",${MESSAGES}}`,
    `\uFEFF{"model":"llama3:latest",${MESSAGES}}`,
  ],
  'that streams, after a byte order mark': [
    `\uFEFF{"model":"scripted","stream":true,${MESSAGES}}`,
    `\uFEFF{"model":"scripted","stream":true,${MESSAGES},${ASK_USAGE}}`,
  ],
  'under a shorter name, in escapes, that streams': [
    `{"stream":true,"mod\\u0065l" : "llam\\u00613" ,${MESSAGES}}`,
    `{"stream":true,"mod\\u0065l" : "llama3:latest" ,${MESSAGES},${ASK_USAGE}}`,
  ],
};

/** Answers whatever is asked, as it is asked. */
const obliging: ScriptedBackend['answer'] = ({ body }, response) => {
  const { stream } = JSON.parse(body.toString().replace('\uFEFF', '')) as { stream?: boolean };
  if (stream === true) response.writeHead(200, SSE).end(chatChunk('a', 'stop') + DONE);
  else response.writeHead(200, JSON_TYPE).end(chatAnswer('a'));
};

describe('a request', () => {
  it.each(Object.keys(REQUESTS))('reaches the backend as it was sent: %s', async (name) => {
    const [sent, received = sent] = REQUESTS[name]!;
    backend.answer = obliging;
    const { status } = await ask(sent);
    expect(status).toBe(200);
    expect(lastRequest().body.toString()).toBe(received);
  });

  it.each([
    ['completions', '{"model":"scripted","prompt":["a",[1,2,9007199254740993]],"suffix":null}'],
    ['embeddings', '{"model":"text-embed","input":["a","é"],"encoding_format":"base64","dimensions":1e2}'],
  ])('for %s reaches that path as it was sent', async (path, sent) => {
    backend.answer = obliging;
    const { status, body } = await ask(sent, { path });
    expect(status).toBe(200);
    expect(body.toString()).toBe(chatAnswer('a'));
    expect(lastRequest().path).toBe(`/v1/${path}`);
    expect(lastRequest().body.toString()).toBe(sent);
  });

  it('of 15 MB reaches the backend as it was sent', async () => {
    backend.answer = obliging;
    const image = randomBytes(11_000_000).toString('base64');
    const sent = Buffer.from(
      `{"model":"scripted","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,${image}"}}]}]}`,
    );
    const { status } = await ask(sent);
    expect(status).toBe(200);
    expect(difference(lastRequest().body, sent)).toBeUndefined();
  });

  it('of any JSON reaches the backend as it was sent', async () => {
    backend.answer = obliging;
    const member = fc.tuple(
      fc.string().filter((name) => !/^(model|messages|stream|stream_options)$/.test(name)),
      fc.json(),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(member), fc.array(member), fc.boolean(), async (before, after, stream) => {
        const spell = (members: [string, string][]) =>
          members.map(([name, value]) => `${JSON.stringify(name)} : ${value}`);
        const known = [`"model":"scripted"`, MESSAGES, ...(stream ? ['"stream":true'] : [])];
        const sent = `{${[...spell(before), ...known, ...spell(after)].join(',')}}`;
        const { status } = await ask(sent);
        expect(status).toBe(200);
        const received = stream ? `${sent.slice(0, -1)},${ASK_USAGE}}` : sent;
        expect(lastRequest().body.toString()).toBe(received);
      }),
      { numRuns: 50 },
    );
  });
});

// ── Headers ──

describe('headers', () => {
  it('of the answer: its type and what begins with openai-, nothing else of the backend', async () => {
    const theirs = {
      'content-type': 'application/json; charset=utf-8; x="y"',
      'openai-processing-ms': '42',
      'openai-version': '2020-10-01',
      'set-cookie': ['session=private'],
      server: 'private-server/1.0',
      'x-private': 'private',
      'www-authenticate': 'Bearer realm="private"',
      location: 'http://private/',
    };
    backend.answer = (_request, response) => void response.writeHead(200, theirs).end(chatAnswer('a'));
    const { headers } = await ask('{"model":"scripted","messages":[]}');
    const got = Object.fromEntries(headers);
    expect(got).toMatchObject({
      'content-type': theirs['content-type'],
      'openai-processing-ms': '42',
      'openai-version': '2020-10-01',
    });
    expect(JSON.stringify(got)).not.toContain('private');
    expect(JSON.stringify(got)).not.toContain(String(backend.port));
  });

  it('of a stream: its type as the backend spelled it', async () => {
    const type = 'Text/Event-Stream;charset=UTF-8';
    backend.answer = (_request, response) => {
      response.writeHead(200, { 'content-type': type, 'openai-model': 'x', 'x-private': 'private' });
      response.end(chatChunk('a', 'stop') + DONE);
    };
    const { headers, body } = await ask(streamRequest('open'));
    expect(headers.get('content-type')).toBe(type);
    expect(headers.get('openai-model')).toBe('x');
    expect(headers.has('x-private')).toBe(false);
    expect(body.toString()).toBe(chatChunk('a', 'stop') + DONE);
  });

  it.each([
    ['a whole answer', '{"model":"scripted","messages":[]}', 200],
    ['a stream', '{"model":"scripted","messages":[],"stream":true}', 200],
    ['what the backend refuses', '{"model":"scripted","messages":[],"n":-1}', 400],
    ['what the gateway refuses', '{"model":"nobody","messages":[]}', 404],
  ])(
    'of every reply: %s is not kept, not guessed at, and read by the page that may',
    async (_, sent, status) => {
      backend.answer = ({ body }, response) => {
        const { stream, n } = JSON.parse(body.toString()) as { stream?: boolean; n?: number };
        response.writeHead(n === -1 ? 400 : 200, stream === true ? SSE : JSON_TYPE);
        response.end(stream === true ? chatChunk('a', 'stop') + DONE : chatAnswer('a'));
      };
      const { headers, ...reply } = await ask(sent, { headers: { origin: APP, 'x-request-id': 'req-8' } });
      expect({ status: reply.status, ...Object.fromEntries(headers) }).toMatchObject({
        status,
        'x-request-id': 'req-8',
        'cache-control': 'no-store',
        'x-content-type-options': 'nosniff',
        vary: 'origin',
        'access-control-allow-origin': APP,
        'access-control-expose-headers': expect.stringContaining('x-flotilla-attempts'),
      });
    },
  );

  it('of the request: what the backend needs, and nothing of the client', async () => {
    backend.answer = obliging;
    await ask('{"model":"scripted","messages":[]}', {
      headers: {
        cookie: 'session=private',
        'x-api-key': 'private',
        'x-forwarded-for': '192.0.2.7',
        'x-private': 'private',
        'openai-organization': 'private',
        'x-request-id': 'req-7',
        'user-agent': 'private/1.0',
      },
    });
    const { headers } = lastRequest();
    expect(Object.keys(headers).sort()).toEqual(
      [
        'accept',
        'accept-encoding',
        'connection',
        'content-length',
        'content-type',
        'host',
        'user-agent',
        'x-request-id',
      ].sort(),
    );
    expect(headers).toMatchObject({ ...JSON_TYPE, 'accept-encoding': 'identity', 'x-request-id': 'req-7' });
    expect(JSON.stringify(headers)).not.toMatch(/private|192\.0\.2\.7|flk_/);
  });
});
