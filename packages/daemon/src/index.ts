/** The daemon itself: what runs it, or makes it ready to run. Its files and its socket: `local.ts`. */
export { findBackends } from './backends/find.ts';
export { KIND_NAMES, type KindName } from './backends/kind.ts';
export {
  type Config,
  ConfigError,
  type ConfigFlags,
  configSchema,
  ENVIRONMENT,
  loadConfig,
} from './config.ts';
export { AddressError, controlAddress } from './control-address.ts';
export type { DaemonEvent } from './link-news.ts';
export { type Enrolment, EnrolError, type EnrolFailure, type EnrolOptions, enrol } from './enrol.ts';
export { runDaemon, type RunOptions } from './run-daemon.ts';
