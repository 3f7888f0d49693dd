/** The control plane, as the command starts it. */
export {
  ConfigError,
  type ControlConfig,
  type ControlFlags,
  controlSettings,
  type Environment,
  readControlConfig,
  type SettingName,
  settingMeta,
} from './config.ts';
export { backupOf, checkBackup, copyStore, type Restored, restoreBackup } from './backup.ts';
export { inspectStore, type StoreReport } from './store/inspect.ts';
export { loadTls } from './http/tls.ts';
export type { StoreOptions } from './store/open.ts';
export { type ControlOptions, type RunningControl, runControl, StartError } from './main.ts';
export { openLog } from './telemetry/log.ts';
export type { Log, LogFields } from '@flotilla/core';
