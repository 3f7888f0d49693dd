import { describe, expect, test } from 'vitest';
import { ConfigError, controlSettings, readControlConfig, type SettingName, settingMeta } from './config.ts';

const KEY = 'k'.repeat(32);

describe('settings', () => {
  test('have the defaults that the design promises', () => {
    expect(readControlConfig({})).toMatchObject({
      port: 7400,
      host: '127.0.0.1',
      heartbeat_ms: 5000,
      connect_timeout_ms: 5000,
      first_byte_timeout_ms: 300_000,
      idle_timeout_ms: 120_000,
      client_stall_timeout_ms: 30_000,
      queue_timeout_ms: 60_000,
      run_timeout_ms: 600_000,
      queue_bound: 1000,
      body_limit_bytes: 16 * 1024 * 1024,
      body_memory_bytes: 256 * 1024 * 1024,
      log_level: 'info',
      warnings: [],
    });
  });

  test('each have a variable of their own and a reason', () => {
    const names = Object.keys(controlSettings.shape) as SettingName[];
    const variables = names.flatMap((name) => settingMeta(name).variable);
    expect(new Set(variables).size).toBe(variables.length);
    expect(names.filter((name) => !settingMeta(name).why.endsWith('.'))).toEqual([]);
  });

  test('of proxies are those that other programs read, and one that is no address is refused without being shown', () => {
    expect(readControlConfig({ HTTPS_PROXY: 'http://proxy.test:3128', no_proxy: '.internal' })).toMatchObject(
      {
        https_proxy: 'http://proxy.test:3128',
        no_proxy: '.internal',
        warnings: [],
      },
    );
    expect(() => readControlConfig({ HTTPS_PROXY: 'u:secret@proxy.test:3128' })).toThrow(
      /^HTTPS_PROXY is not usable; it must be an address that starts with http/,
    );
  });

  test('that are lists are written with commas', () => {
    const { trusted_proxies, cors_origins } = readControlConfig({
      FLOTILLA_TRUSTED_PROXIES: '10.0.0.0/8, ::1',
      FLOTILLA_CORS_ORIGINS: 'https://app.example,http://localhost:3000',
    });
    expect(trusted_proxies).toEqual(['10.0.0.0/8', '::1']);
    expect(cors_origins).toEqual(['https://app.example', 'http://localhost:3000']);
  });

  test('are frozen', () => {
    expect(Object.isFrozen(readControlConfig({}))).toBe(true);
  });

  test('a flag outranks the environment, FLOTILLA_PORT outranks PORT, and an empty variable is none', () => {
    expect(readControlConfig({ PORT: '1', FLOTILLA_PORT: '2' }).port).toBe(2);
    expect(readControlConfig({ PORT: '1', FLOTILLA_PORT: ' ' }).port).toBe(1);
    expect(readControlConfig({ PORT: '1', FLOTILLA_PORT: '2' }, { port: '3' }).port).toBe(3);
    expect(readControlConfig({ FLOTILLA_HOST: '' }).host).toBe('127.0.0.1');
  });

  test.each([
    [{ FLOTILLA_PORT: 'http' }, {}, /^FLOTILLA_PORT is "http"; it must be a whole number\.$/],
    [{ PORT: '70000' }, {}, /^PORT is "70000"; it must be at most 65535\.$/],
    [
      { FLOTILLA_QUEUE_TIMEOUT_MS: '1.5' },
      {},
      /^FLOTILLA_QUEUE_TIMEOUT_MS is "1.5"; it must be a whole number\.$/,
    ],
    [{ FLOTILLA_QUEUE_TIMEOUT_MS: '0' }, {}, /^FLOTILLA_QUEUE_TIMEOUT_MS is "0"; it must be at least 1\.$/],
    [{ FLOTILLA_LOG_LEVEL: 'loud' }, {}, /^FLOTILLA_LOG_LEVEL is "loud"; it must be one of debug, info, /],
    [{ FLOTILLA_PUBLIC_URL: 'example.org' }, {}, /^FLOTILLA_PUBLIC_URL is "example.org"; .*https:\/\//],
    [
      { FLOTILLA_TRUSTED_PROXIES: '10.0.0.0/8,proxy' },
      {},
      /^FLOTILLA_TRUSTED_PROXIES is .*like 10\.0\.0\.0\/8/,
    ],
    [
      { FLOTILLA_CORS_ORIGINS: 'https://app.example/' },
      {},
      /^FLOTILLA_CORS_ORIGINS is .*no slash at the end/,
    ],
    [{ FLOTILLA_CORS_ORIGINS: '*,https://app.example' }, {}, /^FLOTILLA_CORS_ORIGINS is .*\* alone/],
    [{ FLOTILLA_TLS_CERT: '/cert.pem' }, {}, /FLOTILLA_TLS_KEY is not/],
    [
      { FLOTILLA_TLS_CERT: 'a', FLOTILLA_TLS_KEY: 'b', FLOTILLA_PUBLIC_URL: 'http://fleet.example' },
      {},
      /the port speaks https/,
    ],
    [
      { FLOTILLA_BODY_LIMIT_BYTES: '1048576', FLOTILLA_BODY_MEMORY_BYTES: '4194303' },
      {},
      /^FLOTILLA_BODY_MEMORY_BYTES is 4194303; it must be at least 4194304, 4 times FLOTILLA_BODY_LIMIT_BYTES/,
    ],
    [{}, { port: 'x' }, /^--port is "x"; it must be a whole number\.$/],
    [{}, { public_url: 'ftp://a' }, /^--public-url is /],
  ])('%j %j: the error names what is wrong', (env, flags, message) => {
    expect(() => readControlConfig(env, flags)).toThrow(ConfigError);
    expect(() => readControlConfig(env, flags)).toThrow(message);
  });

  test('all that is wrong is told at once', () => {
    expect(() => readControlConfig({ PORT: 'x', FLOTILLA_HEARTBEAT_MS: 'y' })).toThrow(/PORT[^]*HEARTBEAT/);
  });

  test('no error repeats a secret', () => {
    for (const variable of ['FLOTILLA_ADMIN_KEY', 'DATABASE_URL', 'FLOTILLA_METRICS_TOKEN']) {
      const read = () => readControlConfig({ [variable]: 'hunter2' });
      expect(read).toThrow(variable);
      expect(read).not.toThrow(/hunter2/);
    }
  });

  test('an admin key has 32 characters', () => {
    expect(readControlConfig({ FLOTILLA_ADMIN_KEY: KEY }).admin_key).toBe(KEY);
    expect(() => readControlConfig({ FLOTILLA_ADMIN_KEY: KEY.slice(1) })).toThrow(/at least 32 characters/);
  });

  test('a public address loses its last slash', () => {
    expect(readControlConfig({ FLOTILLA_PUBLIC_URL: 'https://a.example/' }).public_url).toBe(
      'https://a.example',
    );
  });

  test('several replicas need one database', () => {
    expect(() => readControlConfig({ NATS_URL: 'nats://a' })).toThrow(/need one PostgreSQL/);
  });
});

describe('warnings', () => {
  test('a heartbeat under 2 s is for tests', () => {
    expect(readControlConfig({ FLOTILLA_HEARTBEAT_MS: '1999' }).warnings[0]).toMatch(/for tests/);
    expect(readControlConfig({ FLOTILLA_HEARTBEAT_MS: '2000' }).warnings).toEqual([]);
  });

  test('a mistyped variable is told what it may have meant', () => {
    expect(readControlConfig({ FLOTILLA_HEARTBEET_MS: '1' }).warnings).toEqual([
      'FLOTILLA_HEARTBEET_MS is no setting of Flotilla and has no effect: did you mean FLOTILLA_HEARTBEAT_MS?',
    ]);
    expect(readControlConfig({ FLOTILLA_ENTIRELY_ELSE: '1' }).warnings[0]).toMatch(/has no effect\.$/);
  });

  test('what other parts of Flotilla read is no mistake', () => {
    expect(
      readControlConfig({ FLOTILLA_URL: 'x', FLOTILLA_NODE_STATE_DIR: 'y', HOME: 'z' }).warnings,
    ).toEqual([]);
  });
});
