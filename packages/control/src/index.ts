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
export { type ControlOptions, type RunningControl, runControl, StartError } from './main.ts';
export { openLog } from './telemetry/log.ts';
