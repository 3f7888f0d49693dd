import type { Bus, Log } from '@flotilla/core';
import { z } from 'zod';

const id = z.string().max(64);
/** One of a key's limits, as replicas share it. */
const limit = z.object({ key: id, kind: z.enum(['requests', 'tokens', 'concurrency', 'budget']) });

/**
 * What a replica tells all others so that they need not wait for their next look at the store. Each is a hint: it may be
 * lost, come twice or come late, and whoever hears it looks at the store or at nothing.
 */
const hintSchema = z.discriminatedUnion('type', [
  /** The configuration was changed. */
  z.object({ type: z.literal('config') }),
  /** Something became of nodes. */
  z.object({ type: z.literal('nodes') }),
  /** Detached jobs of these lanes are ready. */
  z.object({
    type: z.literal('lanes'),
    lanes: z.array(
      z.object({ lane: z.string().max(4096), order_key: z.number().int(), priority: z.number() }),
    ),
  }),
  /** An operator ends a request whose client is elsewhere. */
  /** A node is to be asked for its models. */
  z.object({ type: z.literal('discovery'), node: id }),
  /** Something became of these detached jobs. */
  z.object({ type: z.literal('jobs'), moved: z.array(id), ended: z.array(id) }),
  /** A replica lacks what others may hold without need. */
  z.object({ type: z.literal('recall'), limits: z.array(limit.extend({ recall: z.number() })) }),
  /** It has been given back, as far as it could be. */
  z.object({ type: z.literal('freed'), limits: z.array(limit) }),
]);

type Hint = z.infer<typeof hintSchema>;

export interface Hints {
  tell(hint: Hint): void;
  on<T extends Hint['type']>(type: T, heard: (hint: Extract<Hint, { type: T }>) => void): void;
  /** Hints may have been lost: look at everything. */
  onLost(look: () => void): void;
  /** One has come. */
  take(from: string, data: Uint8Array): void;
  lost(): void;
}

const HINT_MOST_BYTES = 256 * 1024;

export function createHints(bus: Bus, log: Log): Hints {
  const heard = new Map<Hint['type'], ((hint: never) => void)[]>();
  const looks: (() => void)[] = [];
  return {
    tell: (hint) => bus.tell(Buffer.from(JSON.stringify(hint))),
    on: (type, handler) => void heard.set(type, [...(heard.get(type) ?? []), handler]),
    onLost: (look) => void looks.push(look),
    lost() {
      for (const look of looks) look();
    },
    take(from, data) {
      const hint = data.byteLength > HINT_MOST_BYTES ? undefined : read(data);
      // A newer replica may know more hints; what they would tell is in the store.
      if (hint === undefined) return log.debug({ replica: from }, 'A hint that is not known here.');
      for (const handler of heard.get(hint.type) ?? []) handler(hint as never);
    },
  };
}

function read(data: Uint8Array): Hint | undefined {
  try {
    return hintSchema.safeParse(JSON.parse(Buffer.from(data).toString())).data;
  } catch {
    return undefined;
  }
}
