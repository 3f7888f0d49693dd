import type { Bus, Clock } from '@flotilla/core';
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
  /** Whether another process than this one is linked there with the node's credential, and alive; undefined: nobody says. */
  inUse(replica: string, of: ProcessOfNode): Promise<boolean | undefined>;
  /** Who answers that here, within `ANSWER_WITHIN_MS`. */
  onInUse(answer: (of: ProcessOfNode) => Promise<boolean>): void;
  /** @returns whether it was a question, or an answer */
  take(from: string, data: Uint8Array): boolean;
}

interface ProcessOfNode {
  node: string;
  boot_id: string;
}

/** How long who is asked may look; the way there and back comes to it. */
export const ANSWER_WITHIN_MS = 400;
const ASKED_WITHIN_MS = 500;
/** Tells them from what goes over a channel. */
const KIND = 3;
const MOST_BYTES = 4096;

const questionSchema = z.discriminatedUnion('type', [
  z.object({
    type: z.literal('in_use'),
    number: z.number().int(),
    node: z.string().max(64),
    boot_id: z.string().max(128),
  }),
  z.object({ type: z.literal('in_use.told'), number: z.number().int(), in_use: z.boolean() }),
]);

export function createQuestions(bus: Pick<Bus, 'send' | 'connected'>, clock: Clock): Questions {
  const asked = new Map<number, { replica: string; told: (in_use: boolean) => void }>();
  let answerInUse: (of: ProcessOfNode) => Promise<boolean> = () => Promise.resolve(false);
  let numbers = 0;
  return {
    inUse(replica, of) {
      if (!bus.connected) return Promise.resolve(undefined);
      const number = ++numbers;
      return new Promise((resolve) => {
        const finish = (in_use: boolean | undefined) => {
          timer.cancel();
          asked.delete(number);
          resolve(in_use);
        };
        const timer = clock.after(ASKED_WITHIN_MS, () => finish(undefined));
        asked.set(number, { replica, told: finish });
        say(replica, { type: 'in_use', number, ...of });
      });
    },
    onInUse(answer) {
      answerInUse = answer;
    },
    take(from, data) {
      if (data[0] !== KIND) return false;
      const message = data.byteLength > MOST_BYTES ? undefined : read(data.subarray(1));
      if (message?.type === 'in_use') {
        const { number, node, boot_id } = message;
        void answerInUse({ node, boot_id }).then((in_use) =>
          say(from, { type: 'in_use.told', number, in_use }),
        );
      } else if (message !== undefined) {
        const one = asked.get(message.number);
        if (one?.replica === from) one.told(message.in_use);
      }
      return true;
    },
  };

  function say(replica: string, message: z.infer<typeof questionSchema>): void {
    bus.send(replica, Buffer.concat([Buffer.of(KIND), Buffer.from(JSON.stringify(message))]));
  }
}

function read(data: Uint8Array): z.infer<typeof questionSchema> | undefined {
  try {
    return questionSchema.safeParse(JSON.parse(Buffer.from(data).toString())).data;
  } catch {
    return undefined;
  }
}
