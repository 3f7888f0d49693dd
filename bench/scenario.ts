import type { Report } from './report.ts';
import type { Place } from './targets.ts';

/** One thing that is measured: `npm run bench -- <name>`. */
export interface Scenario {
  name: string;
  about: string;
  run(stage: Stage): Promise<Report>;
}

/** What a scenario is given. */
export interface Stage {
  place: Place;
  /** Few rounds, short ones: to see whether it runs, not to be kept. */
  quick: boolean;
  rounds: number;
  for_ms: number;
  /** The load of an hour, and the transaction of ten minutes, however long they are to be. */
  load_ms: number;
  held_ms: number;
  say(what: string): void;
}
