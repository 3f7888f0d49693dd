import type { Log, Random } from '@flotilla/core';
import type { ErrorBody } from '@flotilla/protocol';
import { expect } from 'vitest';
import { systemRandom } from '../../packages/control/src/clock.ts';
import { type Environment, readControlConfig } from '../../packages/control/src/config.ts';
import { type RunningControl, runControl } from '../../packages/control/src/main.ts';
import { type StoreOptions } from '../../packages/control/src/store/open.ts';
import { embeddedPlace, postgresPlace, quiet, testServer } from './store.ts';

/** A control plane in this process: real server, real socket, real store. */
export interface TestPlane {
  control: RunningControl;
  admin_key: string;
  call(method: string, path: string, request?: CallRequest): Promise<TestReply>;
  /** Starts another one on the same store. */
  second(): Promise<RunningControl>;
  /** Stops it, and starts it anew on the same store. */
  restart(env?: Environment): Promise<void>;
  close(): Promise<void>;
}

interface CallRequest {
  key?: string | undefined;
  /** An object is sent as JSON, text as it is. */
  body?: unknown;
  headers?: Record<string, string>;
}

export interface TestReply {
  status: number;
  headers: Headers;
  text: string;
  json: Record<string, never> & ErrorBody;
}

const ADMIN_KEY = `flk_test-${'x'.repeat(40)}`;

export async function openPlane(
  env: Environment = {},
  log: Log = quiet,
  random: Random = systemRandom,
): Promise<TestPlane> {
  const place = testServer === undefined ? await embeddedPlace() : await postgresPlace(testServer);
  let control = await start(env);
  return {
    get control() {
      return control;
    },
    admin_key: ADMIN_KEY,
    call: (method, path, request) => call(control.url, method, path, request),
    second: () => start(env),
    async restart(more = env) {
      await control.close();
      control = await start(more);
    },
    async close() {
      await control.close();
      await place.drop();
    },
  };

  function start(settings: Environment): Promise<RunningControl> {
    const config = readControlConfig({
      FLOTILLA_PORT: '0',
      FLOTILLA_ADMIN_KEY: ADMIN_KEY,
      ...storeSettings(place.options),
      ...settings,
    });
    return runControl(config, { log, random });
  }
}

function storeSettings(options: StoreOptions): Record<string, string> {
  return 'database_url' in options
    ? { DATABASE_URL: options.database_url }
    : { FLOTILLA_DATA_DIR: options.data_dir };
}

async function call(
  url: string,
  method: string,
  path: string,
  { key, body, headers = {} }: CallRequest = {},
): Promise<TestReply> {
  const reply = await fetch(`${url}${path}`, {
    method,
    headers: {
      ...(key !== undefined && { authorization: `Bearer ${key}` }),
      ...(body !== undefined && { 'content-type': 'application/json' }),
      ...headers,
    },
    ...(body !== undefined && { body: typeof body === 'string' ? body : JSON.stringify(body) }),
  });
  const text = await reply.text();
  const is_json = reply.headers.get('content-type')?.startsWith('application/json') === true && text !== '';
  return {
    status: reply.status,
    headers: reply.headers,
    text,
    json: (is_json ? JSON.parse(text) : {}) as TestReply['json'],
  };
}

/** A refusal as `<status> <code> <param>`, once it has the one shape that all of them have, whoever makes it. */
export function errorOf(reply: TestReply): string {
  if (reply.json.error === undefined) return `${reply.status}, not an error: ${reply.text}`;
  const { code, param } = reply.json.error;
  expect(reply.json.error).toMatchObject({
    message: expect.stringMatching(/\S/),
    type: expect.stringMatching(/^\w+$/),
  });
  expect(reply.headers.get('x-request-id')).toMatch(/\S/);
  return `${reply.status} ${code}${param === null ? '' : ` ${param}`}`;
}
