import type { BackendHealth, Health, Model, Operation } from '@flotilla/protocol';

/**
 * When to probe a backend, and what its health is: pure, `(state, event, now) → (state, effects)`. The reasons for the
 * rules are in docs/decisions/010-probes.md.
 *
 * The **list** is asked for again and again and tells whether the server answers:
 *
 *     unseen ──listed──▶ good ──failed──▶ shaky ──third failure──▶ down        down ──listed──▶ good
 *       └── refused, failed ─▶ down ◀── refused (from anywhere)
 *
 * A **model**'s proof is one real answer, asked for at first sight, after a failed request, and when nothing was served
 * for a minute; only where asking can neither throw out a model nor keep one in memory:
 *
 *     unproved ──generated, served──▶ good ──failed──▶ bad ──generated, served──▶ good
 *        ▲                              └──busy──▶ slow ──┘
 *        └── the server was down, or the model was loaded or unloaded
 *
 * Events come from the shell (`probe.ts`): answers to effects, what the link thread saw of real requests, and time.
 */
const LIST_EVERY_MS = 10_000;
const RETRY_MS = [250, 500, 1_000, 2_000, 5_000];
const IDLE_MS = 60_000;
/** However many requests fail, so much lies between two lists asked for because of them. */
const LIST_GAP_MS = 250;
/** A server that answers some questions is not down for missing one or two. */
const DOWN_AFTER = 3;
/** At most one proof a second, however many requests fail at once. */
const PROOF_GAP_MS = 1_000;
const BUSY_RETRY_MS = 5_000;
/** Where no proof may be asked for, so many requests in a row must fail before … */
const DOUBT_AFTER = 3;
/** … the model is kept from work, for so long: then the next request is the proof. */
const DOUBT_MS = 30_000;

export type ProbeEvent =
  | { type: 'listed'; models: Model[]; loads_on_demand: boolean }
  | { type: 'list_failed'; reason: string; refused: boolean }
  | { type: 'generated'; model: string; operation: Operation }
  | { type: 'generate_failed'; model: string; reason: string; refused: boolean; busy: boolean }
  /** It answered, but could not be asked in any way we know: nothing is proved either way. */
  | { type: 'generate_unclear'; model: string }
  | { type: 'request_failed'; model: string; reason: string }
  | { type: 'request_served'; model: string }
  /** How many requests it has now. */
  | { type: 'load'; in_flight: number }
  /** The operator wants to know now. */
  | { type: 'look' }
  | { type: 'tick' };

export type ProbeEffect = { do: 'list' } | { do: 'generate'; model: string; operations: Operation[] };

type Why = 'first' | 'failure' | 'idle';
export interface ModelState {
  facts: Model;
  /** Found out by a proof, where the server did not tell. */
  learned: Operation[] | null;
  proof: 'unproved' | 'good' | 'bad' | 'slow';
  reason: string | null;
  failures: number;
  due: { at: number; why: Why } | null;
  proved_at: number;
  failed_requests: number;
  doubted_until: number;
}

export interface ProbeState {
  /** `generate` also when the server may load on demand, for models it has loaded, is the rule; `list` never proves. */
  probe: 'generate' | 'list';
  loads_on_demand: boolean;
  list: {
    state: 'unseen' | 'good' | 'shaky' | 'down';
    failures: number;
    first_failure_at: number;
    reason: string;
    due_at: number;
    asked: boolean;
    /** Wanted while one was under way, which may have been answered before what made it wanted. */
    again: boolean;
    wanted_at: number;
  };
  models: Map<string, ModelState>;
  generating: string | null;
  in_flight: number;
  served_at: number;
}

export function initialProbeState(probe: 'generate' | 'list', now: number): ProbeState {
  return {
    probe,
    loads_on_demand: false,
    list: {
      state: 'unseen',
      failures: 0,
      first_failure_at: now,
      reason: 'It has not answered yet.',
      due_at: now,
      asked: false,
      again: false,
      wanted_at: Number.NEGATIVE_INFINITY,
    },
    models: new Map(),
    generating: null,
    in_flight: 0,
    served_at: Number.NEGATIVE_INFINITY,
  };
}

export function stepProbe(
  before: ProbeState,
  event: ProbeEvent,
  now: number,
): { state: ProbeState; effects: ProbeEffect[] } {
  const state: ProbeState = { ...before, list: { ...before.list }, models: new Map(before.models) };
  apply(state, event, now);
  return { effects: plan(state, now), state };
}

/** When a tick is next needed. */
export function nextTick(state: ProbeState): number {
  let at = state.list.asked ? Number.POSITIVE_INFINITY : state.list.due_at;
  for (const model of state.models.values()) {
    const askable = state.generating === null && state.list.state === 'good' && mayProve(state, model);
    if (askable && model.due !== null) at = Math.min(at, model.due.at);
    if (model.doubted_until > Number.NEGATIVE_INFINITY) at = Math.min(at, model.doubted_until);
  }
  return at;
}

function apply(state: ProbeState, event: ProbeEvent, now: number): void {
  switch (event.type) {
    case 'listed':
      return listed(state, event, now);
    case 'list_failed':
      return listFailed(state, event, now);
    case 'generated':
      state.generating = null;
      return change(state, event.model, (model) => ({
        ...proved(state, model, now),
        learned: learnedFrom(model, event.operation),
      }));
    case 'generate_unclear':
      state.generating = null;
      return change(state, event.model, (model) => proved(state, model, now));
    case 'generate_failed':
      return generateFailed(state, event, now);
    case 'request_failed':
      return requestFailed(state, event, now);
    case 'request_served':
      state.served_at = now;
      if (state.list.state !== 'good') wantList(state, now);
      return change(state, event.model, (model) => proved(state, model, now));
    case 'load':
      state.in_flight = event.in_flight;
      return;
    case 'look':
      return wantList(state, now);
    case 'tick':
      for (const [id, model] of state.models) {
        if (model.doubted_until <= now)
          state.models.set(id, { ...model, doubted_until: Number.NEGATIVE_INFINITY });
      }
  }
}

function listed(state: ProbeState, event: Extract<ProbeEvent, { type: 'listed' }>, now: number): void {
  const wasDown = state.list.state === 'unseen' || state.list.state === 'down';
  state.list = {
    ...state.list,
    state: 'good',
    failures: 0,
    reason: '',
    asked: false,
    again: false,
    due_at: now + (state.list.again ? LIST_GAP_MS : LIST_EVERY_MS),
  };
  state.loads_on_demand = event.loads_on_demand;
  const models = new Map<string, ModelState>();
  for (const facts of event.models) {
    const known = state.models.get(facts.id);
    // What a proof said of another process, or of the model before it was loaded anew, says nothing of this one.
    const fresh = known === undefined || wasDown || known.facts.loaded !== facts.loaded;
    models.set(facts.id, fresh ? unproved(state, facts, known, now) : { ...known, facts });
  }
  state.models = models;
}

function unproved(state: ProbeState, facts: Model, known: ModelState | undefined, now: number): ModelState {
  return {
    facts,
    learned: known?.learned ?? null,
    proof: 'unproved',
    reason: null,
    failures: 0,
    due: provesUnasked(state, facts) ? { at: now, why: 'first' } : null,
    proved_at: Number.NEGATIVE_INFINITY,
    failed_requests: 0,
    doubted_until: Number.NEGATIVE_INFINITY,
  };
}

/** As soon as may be; what is under way now is asked once more. */
function wantList({ list }: ProbeState, now: number): void {
  if (list.asked) {
    list.again = true;
    return;
  }
  const at = Math.max(now, list.wanted_at + LIST_GAP_MS);
  if (at >= list.due_at) return;
  list.wanted_at = at;
  list.due_at = at;
}

function listFailed(state: ProbeState, event: { reason: string; refused: boolean }, now: number): void {
  const { list } = state;
  if (list.failures === 0) list.first_failure_at = now;
  list.failures += 1;
  list.asked = false;
  list.again = false;
  list.reason = event.reason;
  list.due_at = now + RETRY_MS[Math.min(list.failures, RETRY_MS.length) - 1]!;
  const serves = state.served_at >= list.first_failure_at;
  if (event.refused || list.state === 'unseen') list.state = 'down';
  else if (list.failures >= DOWN_AFTER && !serves) list.state = 'down';
  else if (list.state === 'good') list.state = 'shaky';
}

function generateFailed(
  state: ProbeState,
  event: Extract<ProbeEvent, { type: 'generate_failed' }>,
  now: number,
): void {
  state.generating = null;
  if (event.refused) {
    // The server is gone, not the model ill: the list says so, and its return proves the models anew.
    return gone(state, event.reason, now);
  }
  change(state, event.model, (model) => {
    const failures = event.busy ? 0 : model.failures + 1;
    const wait = event.busy ? BUSY_RETRY_MS : RETRY_MS[Math.min(failures, RETRY_MS.length) - 1]!;
    return {
      ...model,
      proof: event.busy ? 'slow' : 'bad',
      reason: event.reason,
      failures,
      due: { at: now + wait, why: 'failure' },
      proved_at: now,
    };
  });
}

function gone(state: ProbeState, reason: string, now: number): void {
  state.list.state = 'down';
  state.list.reason = reason;
  wantList(state, now);
}

function requestFailed(state: ProbeState, event: { model: string; reason: string }, now: number): void {
  wantList(state, now);
  change(state, event.model, (model) => {
    const failed_requests = model.failed_requests + 1;
    if (mayProve(state, model)) {
      const at = Math.max(now, model.proved_at + PROOF_GAP_MS);
      return { ...model, failed_requests, due: { at: Math.min(at, model.due?.at ?? at), why: 'failure' } };
    }
    if (failed_requests < DOUBT_AFTER) return { ...model, failed_requests };
    return { ...model, failed_requests, doubted_until: now + DOUBT_MS, reason: event.reason };
  });
}

function proved(state: ProbeState, model: ModelState, now: number): ModelState {
  return {
    ...model,
    proof: 'good',
    reason: null,
    failures: 0,
    due: provesUnasked(state, model.facts) ? { at: now + IDLE_MS, why: 'idle' } : null,
    proved_at: now,
    failed_requests: 0,
    doubted_until: Number.NEGATIVE_INFINITY,
  };
}

/** A model that answers as chat does text completions too, unless its server said otherwise. */
function learnedFrom(model: ModelState, operation: Operation): Operation[] | null {
  return operationsOf(model).includes(operation) ? model.learned : [operation];
}

export function operationsOf(model: ModelState): Operation[] {
  return model.learned ?? model.facts.operations;
}

/** Asking loads nothing, and so throws nothing out. */
function mayProve(state: ProbeState, model: ModelState): boolean {
  if (state.probe === 'list') return false;
  return model.facts.loaded === true || (model.facts.loaded === undefined && !state.loads_on_demand);
}

/** Asking again and again does not keep a model in memory that its server would unload. */
function provesUnasked(state: ProbeState, facts: Model): boolean {
  return state.probe === 'generate' && !state.loads_on_demand && facts.loaded !== false;
}

function change(state: ProbeState, id: string, to: (model: ModelState) => ModelState): void {
  const model = state.models.get(id);
  if (model !== undefined) state.models.set(id, to(model));
}

/** One question of each sort at a time. */
function plan(state: ProbeState, now: number): ProbeEffect[] {
  const effects: ProbeEffect[] = [];
  if (!state.list.asked && state.list.due_at <= now) {
    state.list.asked = true;
    effects.push({ do: 'list' });
  }
  if (state.generating !== null || state.list.state !== 'good') return effects;
  for (const [id, model] of state.models) {
    if (model.due === null || model.due.at > now || !mayProve(state, model)) continue;
    if (model.due.why === 'idle' && state.in_flight > 0) {
      // It is not idle: its requests will tell.
      state.models.set(id, { ...model, due: { at: now + BUSY_RETRY_MS, why: 'idle' } });
      continue;
    }
    state.models.set(id, { ...model, due: null });
    state.generating = id;
    effects.push({ do: 'generate', model: id, operations: operationsOf(model) });
    break;
  }
  return effects;
}

interface Verdict {
  health: Health;
  reason?: string;
}

/** A backend's health, and that of each model where it differs. */
export function healthOf(state: ProbeState): Omit<BackendHealth, 'id'> {
  if (state.list.state === 'unseen' || state.list.state === 'down')
    return { health: 'down', reason: state.list.reason, models: [] };
  const models = [...state.models].map(([id, model]) => ({ id, ...modelHealth(state, model) }));
  if (models.length > 0 && models.every(({ health }) => health === 'down')) {
    return { health: 'down', reason: models[0]!.reason ?? 'No model answers.', models: [] };
  }
  const own: Verdict =
    state.list.state === 'shaky' ? { health: 'degraded', reason: state.list.reason } : { health: 'healthy' };
  return { ...own, models: models.filter(({ health }) => health !== own.health) };
}

function modelHealth(state: ProbeState, model: ModelState): Verdict {
  if (model.proof === 'bad') return { health: 'down', reason: model.reason ?? 'It does not answer.' };
  if (model.proof === 'slow') return { health: 'degraded', reason: model.reason ?? 'It is busy.' };
  if (model.doubted_until > Number.NEGATIVE_INFINITY)
    return { health: 'degraded', reason: model.reason ?? 'Its requests failed.' };
  if (model.proof === 'unproved' && provesUnasked(state, model.facts))
    return { health: 'degraded', reason: 'Its first probe is under way.' };
  return state.list.state === 'shaky'
    ? { health: 'degraded', reason: state.list.reason }
    : { health: 'healthy' };
}
