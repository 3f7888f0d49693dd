import type { Chance } from './chance.ts';
import { type ClientDeps, type Submitted, attachedClient, detachedClient } from './client.ts';
import type { Judge } from './judge.ts';
import type { World } from './world.ts';

/** What clients want of a world: requests that they wait for, and jobs that they do not. */
const FROM_MS = 300;
const UNTIL_MS = 9_000;

export function planWork(world: World, plan: Chance, credential: string, judge: Judge): void {
  const { scheduler } = world;
  const deps: ClientDeps = {
    scheduler,
    chance: world.chance.fork(),
    credential,
    anywhere: () => world.anywhere(),
    heard: (client) => judge.heard(client),
    acked: (job) => judge.acked(job),
  };
  const jobs = plan.whole(5, 14);
  for (let at = 0; at < jobs; at++) {
    const at_ms = plan.between(FROM_MS, UNTIL_MS);
    const detached = plan.happens(0.5);
    const words = plan.whole(1, 24);
    const name = `${detached ? 'detached' : 'attached'}-${at + 1}`;
    if (detached) {
      const asked = {
        request_id: name,
        words,
        on_node_loss: plan.happens(0.7) ? 'requeue' : plan.pick(['fail', 'wait_for_origin']),
        queue_timeout_ms: plan.happens(0.15) ? plan.whole(500, 5000) : 60_000,
        run_timeout_ms: plan.happens(0.15) ? plan.whole(300, 3000) : 20_000,
        tries: plan.whole(1, 40),
        repeats: plan.happens(0.2),
      };
      const cancelled_ms = plan.happens(0.25) ? at_ms + plan.between(0, 6000) : null;
      scheduler.at(at_ms, () => {
        const job = detachedClient(deps, asked);
        world.submitted.push(job);
        if (cancelled_ms !== null) scheduler.at(cancelled_ms, () => cancel(world, job));
      });
    } else {
      const asked = {
        request_id: name,
        stream: plan.happens(0.7),
        wants_usage: plan.happens(0.3),
        words,
        leaves_after_ms: plan.happens(0.15) ? plan.between(0, 4000) : null,
      };
      scheduler.at(at_ms, () => world.attached.push(attachedClient(deps, asked)));
    }
  }
}

function cancel(world: World, { jobs: [job] }: Submitted): void {
  if (job !== undefined)
    world.asOperator(({ detached }) => detached.cancel(job, 'It is not needed any more.'));
}
