import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  ConfigError,
  ENVIRONMENT,
  configSchema,
  readConfig,
  unknownVariables,
  withSettings,
} from './config.ts';
import { folder } from './testing/folder.ts';

const file = (text: string) => ({ path: '/n/node.yaml', text });

test('without anything, every setting has its default', () => {
  expect(readConfig({})).toEqual({
    labels: {},
    backends: [],
    find_backends: true,
    status_port: 7401,
    drain_timeout_ms: 60_000,
    connect_timeout_ms: 5_000,
    heartbeat_stale_ms: 60_000,
    log_level: 'info',
  });
});

test('flags outrank the environment, the environment outranks the file', () => {
  const text = 'slots: 1\nregion: file\nstatus_port: 1000\n';
  const environment = { FLOTILLA_NODE_SLOTS: '2', FLOTILLA_NODE_REGION: 'environment' };
  const config = readConfig({ file: file(text), environment, flags: { slots: 3, region: undefined } });
  expect(config).toMatchObject({ slots: 3, region: 'environment', status_port: 1000 });
});

test('every variable of the table reaches its setting', () => {
  const environment = {
    FLOTILLA_NODE_CONTROL_URL: 'https://fleet.example/',
    FLOTILLA_NODE_LABELS: 'gpu=rtx4090, rack=a=b',
    FLOTILLA_NODE_REGION: 'home',
    FLOTILLA_NODE_BACKENDS: 'http://127.0.0.1:9000/v1/, http://gpu:8000',
    FLOTILLA_NODE_FIND_BACKENDS: 'false',
    FLOTILLA_NODE_SLOTS: '8',
    FLOTILLA_NODE_PROBE: 'list',
    FLOTILLA_NODE_STATUS_PORT: '0',
    FLOTILLA_NODE_DRAIN_TIMEOUT_MS: '1000',
    FLOTILLA_NODE_HEARTBEAT_STALE_MS: '4000',
    FLOTILLA_CONNECT_TIMEOUT_MS: '2000',
    FLOTILLA_IDLE_TIMEOUT_MS: '3000',
    FLOTILLA_LOG_LEVEL: 'debug',
  };
  expect(Object.keys(environment).sort()).toEqual(Object.keys(ENVIRONMENT).sort());
  expect(readConfig({ environment })).toEqual({
    control_url: 'https://fleet.example',
    labels: { gpu: 'rtx4090', rack: 'a=b' },
    region: 'home',
    backends: [{ url: 'http://127.0.0.1:9000/v1' }, { url: 'http://gpu:8000' }],
    find_backends: false,
    slots: 8,
    probe: 'list',
    status_port: 0,
    drain_timeout_ms: 1000,
    heartbeat_stale_ms: 4000,
    connect_timeout_ms: 2000,
    idle_timeout_ms: 3000,
    log_level: 'debug',
  });
});

test('every setting says what it is for', () => {
  const silent = Object.entries(configSchema.shape).filter(([, { description }]) => !description);
  expect(silent.map(([name]) => name)).toEqual([]);
});

describe('what is wrong is said with its place and the likeliest fix', () => {
  const message = (sources: Parameters<typeof readConfig>[0]) => {
    try {
      readConfig(sources);
    } catch (error) {
      expect(error).toBeInstanceOf(ConfigError);
      return (error as Error).message;
    }
    throw new Error('nothing was wrong');
  };

  test('an unknown key', () => {
    expect(message({ file: file('slot: 4') })).toBe(
      '/n/node.yaml: slot is not a setting; did you mean slots?',
    );
    expect(message({ file: file('backends: [{url: "http://a", apikey: x}]') })).toBe(
      '/n/node.yaml: backends.0.apikey is not a setting; did you mean api_key?',
    );
    expect(message({ file: file('entirely_else: 4') })).toBe('/n/node.yaml: entirely_else is not a setting.');
  });

  test('a wrong value, by the name under which it was given', () => {
    expect(message({ environment: { FLOTILLA_NODE_SLOTS: 'many' } })).toMatch(
      /^FLOTILLA_NODE_SLOTS: .*number/,
    );
    expect(message({ flags: { slots: 0 } })).toMatch(/^--slots: /);
    expect(message({ file: file('backends: [{url: "ftp://x"}]') })).toMatch(
      /node.yaml: backends.0.url: .*no http/,
    );
    expect(message({ file: file('backends: [{url: "http://u:p@x"}]') })).toMatch(/no user or password/);
  });

  test('a file that is no settings at all', () => {
    expect(message({ file: file('- a\n- b') })).toMatch(/name: value/);
    expect(message({ file: file('a: [') })).toMatch(/node.yaml/);
  });

  test('two backends with one id', () => {
    expect(message({ file: file('backends: [{id: a, url: "http://x"}, {id: a, url: "http://y"}]') })).toMatch(
      /"a"/,
    );
  });

  test('a variable that looks like ours', () => {
    expect(unknownVariables({ FLOTILLA_NODE_SLOT: '1', FLOTILLA_NODE_STATE_DIR: '/x', PATH: '' })).toEqual([
      'FLOTILLA_NODE_SLOT is not a setting; did you mean FLOTILLA_NODE_SLOTS?',
    ]);
  });
});

test('settings put into the file keep its comments and other settings', async () => {
  const path = join(await folder(), 'node.yaml');
  await writeFile(path, '# my box\nregion: home # here\nslots: 1\n');
  const given = { slots: 6, backends: [{ url: 'http://127.0.0.1:9000' }], labels: undefined };
  const text = await withSettings(path, given);
  expect(text).toContain('# my box');
  expect(text).toContain('region: home # here');
  expect(readConfig({ file: { path, text: text! } })).toMatchObject({ region: 'home', ...given, labels: {} });
  await writeFile(path, text!);
  expect(await withSettings(path, given)).toBeNull();
});

test('settings that would not be read again are not put into the file', async () => {
  const path = join(await folder(), 'node.yaml');
  await expect(withSettings(path, { slots: -1 })).rejects.toThrow(ConfigError);
  await writeFile(path, 'a: [');
  await expect(withSettings(path, { slots: 1 })).rejects.toThrow(ConfigError);
});
