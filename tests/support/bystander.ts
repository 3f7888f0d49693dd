import { expect } from 'vitest';
import { chatChunk, DONE, SSE } from './scripted-backend.ts';
import type { World } from './world.ts';

/** A node and clients that have nothing to do with what a test does beside them. */
export interface Bystander {
  /** Begins a stream of an event every 5 ms, for as long as it is not ended. */
  stream(): Promise<BystanderStream>;
}

export interface BystanderStream {
  /** Lets it end, and holds it to have reached its client whole: no byte missing, none twice. */
  end(): Promise<void>;
}

export async function startBystander(world: World, model = 'bystander'): Promise<Bystander> {
  /** Ends the stream of that name. @returns all that its client should have got */
  const running = new Map<string, () => string>();
  const backend = await world.backend(
    (request, response) => {
      response.writeHead(200, SSE);
      const { user } = JSON.parse(request.body.toString()) as { user: string };
      let count = 0;
      const timer = setInterval(() => response.write(chatChunk(`${user} ${count++};`)), 5);
      response.on('close', () => clearInterval(timer));
      running.set(user, () => {
        clearInterval(timer);
        response.end(DONE);
        return Array.from({ length: count }, (_, index) => chatChunk(`${user} ${index};`)).join('') + DONE;
      });
    },
    [model],
  );
  await world.node({ name: model, backends: [{ url: backend.url, slots: 64 }] });
  let streams = 0;
  return {
    async stream() {
      const user = `${model}-${++streams}`;
      const reply = await world.plane.chat({
        model,
        user,
        stream: true,
        stream_options: { include_usage: false },
      });
      expect(reply.status).toBe(200);
      const text = reply.text();
      return {
        async end() {
          const whole = running.get(user)!();
          running.delete(user);
          expect(await text).toBe(whole);
        },
      };
    },
  };
}
