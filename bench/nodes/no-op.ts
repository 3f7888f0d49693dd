import { encodeFrame, END_OUTCOME, FRAME_KIND } from '@flotilla/protocol';
import { sharedNow_ms, takeOrders } from '../orders.ts';
import { MODEL, SLOTS } from '../targets.ts';
import { openBareLink } from './link.ts';

/**
 * A node that does nothing: what it is offered is done the moment its request is whole, so that what is measured is the
 * control plane and its store. It keeps no journal; what a journal costs shows where the real daemon is measured.
 */
const ANSWER = Buffer.from(
  JSON.stringify({
    id: 'chatcmpl-bench',
    object: 'chat.completion',
    created: 0,
    model: MODEL,
    choices: [{ index: 0, message: { role: 'assistant', content: 'Done.' }, finish_reason: 'stop' }],
    usage: { prompt_tokens: 10, completion_tokens: 2, total_tokens: 12 },
  }),
);
const HEAD = Buffer.from(JSON.stringify({ status: 200, headers: { 'content-type': 'application/json' } }));
const COMPLETE = Buffer.of(END_OUTCOME.complete);
const RESULT = {
  result: { status: 200, length: ANSWER.length },
  usage: { prompt_tokens: 10, completion_tokens: 2, cached_tokens: 0, estimated: false },
};

interface Offered {
  job: string;
  attempt: number;
  request: Buffer[];
}

const offers = new Map<number, Offered>();
let arrivals: [number, number][] = [];
/** Results that the control plane has committed since `count`, and who waits for how many. */
let committed = 0;
let waiting: { jobs: number; resolve: () => void } | null = null;

const link = openBareLink({
  url: process.env['CONTROL_URL']!,
  name: process.env['NODE_NAME']!,
  boot_id: 'bench',
  credential: process.env['CREDENTIAL']!,
  slots: SLOTS,
  model: MODEL,
  up() {
    takeOrders({
      arrivals() {
        const told = arrivals;
        arrivals = [];
        return told;
      },
      count() {
        committed = 0;
      },
      committed: (given) =>
        new Promise<void>((resolve) => {
          waiting = { jobs: Number(given.get('jobs')), resolve };
          wake();
        }),
    });
  },
  closed(reason) {
    process.stderr.write(`The link was closed: ${reason}\n`);
    process.exit(1);
  },
  message(message) {
    if (message.type === 'job.offer') {
      const { job, attempt, stream } = message;
      offers.set(stream, { job, attempt, request: [] });
    } else if (message.type === 'result.ack') {
      if (message.outcome === 'accepted') committed++;
      wake();
    } else if (message.type === 'job.cancel' || message.type === 'job.abandon') {
      const { job, attempt } = message;
      link.send(JSON.stringify({ type: 'job.released', job, attempt, started: true }));
    }
  },
  frame({ kind, stream, payload }) {
    const offered = offers.get(stream);
    if (offered === undefined) return;
    if (kind === FRAME_KIND.requestBody) offered.request.push(payload as Buffer);
    else if (kind === FRAME_KIND.end) {
      offers.delete(stream);
      done(stream, offered);
    }
  },
});

function wake(): void {
  if (waiting === null || committed < waiting.jobs) return;
  waiting.resolve();
  waiting = null;
}

function done(stream: number, { job, attempt, request }: Offered): void {
  const number = /"bench_n":(\d+)/.exec(Buffer.concat(request).toString('latin1'))?.[1];
  if (number !== undefined) arrivals.push([Number(number), sharedNow_ms()]);
  link.send(JSON.stringify({ type: 'job.started', job, attempt }));
  link.send(encodeFrame(FRAME_KIND.responseHead, stream, 0, HEAD));
  link.send(encodeFrame(FRAME_KIND.responseBody, stream, 0, ANSWER));
  link.send(encodeFrame(FRAME_KIND.end, stream, ANSWER.length, COMPLETE));
  link.send(JSON.stringify({ type: 'job.completed', job, attempt, ...RESULT }));
}
