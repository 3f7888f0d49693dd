/** The daemon: what the commands need of it. */
export { findBackends } from './backends/find.ts';
export { KIND_NAMES, type KindName } from './backends/kind.ts';
export {
  type Config,
  ConfigError,
  type ConfigFlags,
  configSchema,
  ENVIRONMENT,
  loadConfig,
  rememberSettings,
} from './config.ts';
export { AddressError, controlAddress } from './control-address.ts';
export { callDaemon, type ControlRequest, DaemonCallError } from './control-socket.ts';
export type { DaemonEvent } from './link-news.ts';
export { type Enrolment, EnrolError, type EnrolFailure, type EnrolOptions, enrol } from './enrol.ts';
export { forgetEnrolment } from './forget.ts';
export { runDaemon, type RunOptions } from './run-daemon.ts';
export { readCredential, StateDirError, type StatePaths, stateDirOf, statePaths } from './state-dir.ts';
