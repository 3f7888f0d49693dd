/**
 * What a command on this machine needs of the daemon that is not one itself. Apart from `index.ts`, which loads three
 * times as many modules: `flotilla node status` would take twice its time.
 */
export { callDaemon, type ControlRequest, DaemonCallError } from './control-socket.ts';
export { forgetEnrolment, replaceCredential } from './without-daemon.ts';
export {
  isNodeCredential,
  readCredential,
  StateDirError,
  type StatePaths,
  stateDirOf,
  statePaths,
} from './state-dir.ts';
