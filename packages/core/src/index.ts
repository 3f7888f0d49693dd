/** The rules: pure functions over state, event and time, and the ports through which the shells act. */
export * from './ports/clock.ts';
export * from './ports/log.ts';
export * from './ports/store.ts';
