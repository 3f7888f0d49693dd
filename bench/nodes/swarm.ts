import { linkStood, nextReconnect, type Reconnect, RECONNECT_START, timings } from '@flotilla/core';
import { Samples, type Spread, spreadOf } from '../histogram.ts';
import { takeOrders } from '../orders.ts';
import { credentialOf, nameOf } from './enrolled.ts';
import { type BareLink, openBareLink } from './link.ts';

/** All are up again. */
export interface Settled {
  /** How long each took since the links were lost. */
  each: Spread;
  /** Nodes that stopped their work meanwhile, by their own clock. */
  fenced: number;
  /** Dials that were not let in, by what was said. */
  refusals: Record<string, number>;
}

/**
 * Thousands of nodes in one process, each with its own link, beating and dialling again as the daemon does. They have no
 * work; a node counts itself fenced when its last acknowledged beat is as old as the daemon's limit.
 *
 *     away ──dial──▶ dialling ──registered──▶ up ──closed──▶ away
 */
interface Member {
  name: string;
  credential: string;
  model: string;
  link: BareLink | null;
  up: boolean;
  /** Its link was up, and its end is no refusal. */
  dropped: boolean;
  up_since_ms: number;
  reconnect: Reconnect;
  /** When the last beat that was acknowledged was sent. */
  acked_ms: number;
}

const CONTROL_URL = process.env['CONTROL_URL']!;
const HEARTBEAT_MS = Number(process.env['HEARTBEAT_MS']);
const SLOTS = 4;
const { fence_ms } = timings(HEARTBEAT_MS);

let members: Member[] = [];
let up = 0;
let fenced = 0;
let round_trips = new Samples();
let refusals: Record<string, number> = {};
let dropped_ms = 0;
let wake: (() => void) | null = null;

setInterval(() => {
  const now_ms = performance.now();
  for (const member of members) {
    // Once for each silence.
    if (now_ms - member.acked_ms < fence_ms) continue;
    fenced++;
    member.acked_ms = Infinity;
  }
}, 250).unref();

takeOrders({
  /** The control plane knows them already. */
  join(given) {
    const models = Number(given.get('models'));
    members = Array.from({ length: Number(given.get('nodes')) }, (_, n) => ({
      name: nameOf(n),
      credential: credentialOf(n),
      model: `model-${n % models}`,
      link: null,
      up: false,
      dropped: false,
      up_since_ms: 0,
      reconnect: RECONNECT_START,
      acked_ms: Infinity,
    }));
    dropped_ms = performance.now();
    for (const member of members) dialLater(member);
    return settled();
  },
  /** All links at once, without a goodbye; they dial again by themselves. */
  drop() {
    dropped_ms = performance.now();
    for (const member of members) {
      lose(member);
      member.link?.drop();
    }
    return settled();
  },
  /** Resolves once all are up again that were lost after it was called. */
  lost() {
    dropped_ms = performance.now();
    return new Promise((resolve) => {
      const look = setInterval(() => {
        if (up > 0) return;
        clearInterval(look);
        resolve(settled());
      }, 10);
    });
  },
  /** Of the beats since it was asked last. */
  beats() {
    const spread = spreadOf(round_trips.values());
    round_trips = new Samples();
    return { up, fenced, round_trips: spread };
  },
});

function settled(): Promise<Settled> {
  return new Promise((resolve) => {
    wake = () => {
      wake = null;
      const took = members.map(({ up_since_ms }) => up_since_ms - dropped_ms);
      resolve({ each: spreadOf(Float64Array.from(took)), fenced, refusals });
      refusals = {};
      fenced = 0;
    };
    if (up === members.length) wake();
  });
}

function lose(member: Member): void {
  if (!member.up) return;
  up--;
  member.up = false;
  member.dropped = true;
  member.reconnect = linkStood(member.reconnect, performance.now() - member.up_since_ms);
}

function dialLater(member: Member): void {
  const { state, delay_ms } = nextReconnect(member.reconnect, Math.random());
  member.reconnect = state;
  member.dropped = false;
  setTimeout(() => dial(member), delay_ms);
}

function dial(member: Member): void {
  member.link = openBareLink({
    url: CONTROL_URL,
    name: member.name,
    boot_id: `boot-${member.name}`,
    credential: member.credential,
    slots: SLOTS,
    model: member.model,
    up(sent_ms) {
      member.up = true;
      member.acked_ms = sent_ms;
      member.up_since_ms = performance.now();
      if (++up === members.length) wake?.();
    },
    acknowledged(beat_sent_ms) {
      round_trips.add(performance.now() - beat_sent_ms);
      member.acked_ms = beat_sent_ms;
    },
    closed(reason) {
      if (member.up) lose(member);
      else if (!member.dropped) refusals[reason] = (refusals[reason] ?? 0) + 1;
      dialLater(member);
    },
  });
}
