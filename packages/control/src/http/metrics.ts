import type { Metrics } from '../telemetry/metrics.ts';
import type { Handlers } from './routing.ts';

export function metricsRoutes(metrics: Pick<Metrics, 'render' | 'content_type'>): Pick<Handlers, 'metrics'> {
  return {
    async metrics({ reply }) {
      await reply.header('content-type', metrics.content_type).send(await metrics.render());
    },
  };
}
