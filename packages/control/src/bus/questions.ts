import type { Bus, Clock, Log } from '@flotilla/core';
import { explainView, nodeView } from '@flotilla/protocol';
import { z } from 'zod';

/**
 * What one replica needs to hear from one other at once, and no store could tell it.
 *
 *     asked ──answer──▶ known
 *       └── its time is over, the bus is away ──▶ nobody says
 *
 * Question and answer may be lost: who asks has something to do when nobody says.
 */
export interface Questions {
  /** @returns undefined: nobody says */
  ask<T extends Question['type']>(
    replica: string,
    question: Extract<Question, { type: T }>,
  ): Promise<Answers[T] | undefined>;
  /** Who answers such questions here, within `ANSWER_WITHIN_MS`. */
  on<T extends Question['type']>(
    type: T,
    answer: (question: Extract<Question, { type: T }>) => Answers[T] | Promise<Answers[T]>,
  ): void;
  /** @returns whether it was a question, or an answer */
  take(from: string, data: Uint8Array): boolean;
}

/** How long who is asked may look; the way there and back comes to it. */
export const ANSWER_WITHIN_MS = 400;
const ASKED_WITHIN_MS = 500;
/** Tells them from what goes over a channel. */
const KIND = 3;
/** Of a question and of an answer: less than what a message of NATS may have. */
export const MOST_BYTES = 512 * 1024;

const questionSchema = z.discriminatedUnion('type', [
  /** Whether another process than this one is linked there with the node's credential, and alive. */
  z.object({ type: z.literal('in_use'), node: z.string().max(64), boot_id: z.string().max(128) }),
  /** Whether an open request of a client there was ended by this. */
  z.object({ type: z.literal('cancel'), job: z.string().max(64), message: z.string().max(1000) }),
  /** How these nodes are, of which that replica has the links. */
  z.object({ type: z.literal('nodes'), nodes: z.array(z.string().max(64)).max(1000) }),
  /** Why an open request of a client there is where it is. */
  z.object({ type: z.literal('explain'), job: z.string().max(64) }),
]);
export const linkedNode = nodeView
  .pick({ id: true, state: true, health: true, pools: true, journal: true, epoch: true, connected_at: true })
  .extend(
    nodeView.pick({ replica: true, link_rtt_ms: true, last_seen_at: true, why: true, host: true }).shape,
  )
  .extend({ in_flight: z.number().int() });
const answers = {
  in_use: z.boolean(),
  cancel: z.boolean(),
  /** Those whose links it has, as far as they fit. */
  nodes: z.array(linkedNode),
  /** Null: it does not have the request. */
  explain: explainView.nullable(),
};
const messageSchema = z.union([
  z.object({ number: z.number().int(), question: questionSchema }),
  z.object({ number: z.number().int(), answer: z.unknown() }),
]);
export type LinkedNode = z.infer<typeof linkedNode>;
type Question = z.infer<typeof questionSchema>;
type Answers = { [T in Question['type']]: z.infer<(typeof answers)[T]> };
type Message = z.infer<typeof messageSchema>;

export function createQuestions(bus: Pick<Bus, 'send' | 'connected'>, clock: Clock, log: Log): Questions {
  const asked = new Map<number, { replica: string; told: (answer: unknown) => void }>();
  const answerers = new Map<Question['type'], (question: never) => unknown>();
  let numbers = 0;
  return {
    ask(replica, question) {
      if (!bus.connected) return Promise.resolve(undefined);
      const number = ++numbers;
      return new Promise((resolve) => {
        const finish = (answer: unknown) => {
          timer.cancel();
          asked.delete(number);
          resolve(answers[question.type].safeParse(answer).data as Answers[typeof question.type] | undefined);
        };
        const timer = clock.after(ASKED_WITHIN_MS, () => finish(undefined));
        asked.set(number, { replica, told: finish });
        say(replica, { number, question });
      });
    },
    on(type, answer) {
      answerers.set(type, answer);
    },
    take(from, data) {
      if (data[0] !== KIND) return false;
      const message = data.byteLength > MOST_BYTES ? undefined : read(data.subarray(1));
      if (message === undefined) return true;
      const { number } = message;
      if ('question' in message) void answer(from, number, message.question);
      else if (asked.get(number)?.replica === from) asked.get(number)!.told(message.answer);
      return true;
    },
  };

  async function answer(from: string, number: number, question: Question): Promise<void> {
    try {
      const answered = await answerers.get(question.type)?.(question as never);
      if (answered !== undefined) say(from, { number, answer: answered });
    } catch (error) {
      // Whoever asked does what it does when nobody says.
      log.error({ error, replica: from }, 'A question of another replica met a fault of ours.');
    }
  }

  /** What does not fit is not said. */
  function say(replica: string, message: Message): void {
    const data = Buffer.concat([Buffer.of(KIND), Buffer.from(JSON.stringify(message))]);
    if (data.byteLength <= MOST_BYTES) bus.send(replica, data);
    else log.warn({ replica, bytes: data.byteLength }, 'An answer for another replica is too large.');
  }
}

function read(data: Uint8Array): Message | undefined {
  try {
    return messageSchema.safeParse(JSON.parse(Buffer.from(data).toString())).data;
  } catch {
    return undefined;
  }
}
