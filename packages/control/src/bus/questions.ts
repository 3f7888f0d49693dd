import type { Bus, Clock, Log } from '@flotilla/core';
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
  /** @returns yes or no; undefined: nobody says */
  ask(replica: string, question: Question): Promise<boolean | undefined>;
  /** Who answers such questions here, within `ANSWER_WITHIN_MS`. */
  on<T extends Question['type']>(
    type: T,
    answer: (question: Extract<Question, { type: T }>) => boolean | Promise<boolean>,
  ): void;
  /** @returns whether it was a question, or an answer */
  take(from: string, data: Uint8Array): boolean;
}

/** How long who is asked may look; the way there and back comes to it. */
export const ANSWER_WITHIN_MS = 400;
const ASKED_WITHIN_MS = 500;
/** Tells them from what goes over a channel. */
const KIND = 3;
const MOST_BYTES = 4096;

const questionSchema = z.discriminatedUnion('type', [
  /** Whether another process than this one is linked there with the node's credential, and alive. */
  z.object({ type: z.literal('in_use'), node: z.string().max(64), boot_id: z.string().max(128) }),
  /** Whether an open request of a client there was ended by this. */
  z.object({ type: z.literal('cancel'), job: z.string().max(64), message: z.string().max(1000) }),
]);
const messageSchema = z.union([
  z.object({ number: z.number().int(), question: questionSchema }),
  z.object({ number: z.number().int(), answer: z.boolean() }),
]);
type Question = z.infer<typeof questionSchema>;
type Message = z.infer<typeof messageSchema>;

export function createQuestions(bus: Pick<Bus, 'send' | 'connected'>, clock: Clock, log: Log): Questions {
  const asked = new Map<number, { replica: string; told: (answer: boolean) => void }>();
  const answers = new Map<Question['type'], (question: never) => boolean | Promise<boolean>>();
  let numbers = 0;
  return {
    ask(replica, question) {
      if (!bus.connected) return Promise.resolve(undefined);
      const number = ++numbers;
      return new Promise((resolve) => {
        const finish = (answer: boolean | undefined) => {
          timer.cancel();
          asked.delete(number);
          resolve(answer);
        };
        const timer = clock.after(ASKED_WITHIN_MS, () => finish(undefined));
        asked.set(number, { replica, told: finish });
        say(replica, { number, question });
      });
    },
    on(type, answer) {
      answers.set(type, answer);
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
      const answered = await answers.get(question.type)?.(question as never);
      if (answered !== undefined) say(from, { number, answer: answered });
    } catch (error) {
      // Whoever asked does what it does when nobody says.
      log.error({ error, replica: from }, 'A question of another replica met a fault of ours.');
    }
  }

  function say(replica: string, message: Message): void {
    bus.send(replica, Buffer.concat([Buffer.of(KIND), Buffer.from(JSON.stringify(message))]));
  }
}

function read(data: Uint8Array): Message | undefined {
  try {
    return messageSchema.safeParse(JSON.parse(Buffer.from(data).toString())).data;
  } catch {
    return undefined;
  }
}
