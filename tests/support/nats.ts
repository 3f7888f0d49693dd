/** Where replicas meet in tests; undefined: what needs several replicas cannot be tested. */
export const NATS_URL =
  process.env['FLOTILLA_TEST_DATABASE_URL'] === undefined
    ? undefined
    : (process.env['FLOTILLA_TEST_NATS_URL'] ?? 'nats://127.0.0.1:4222');
