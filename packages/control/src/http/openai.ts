import { FlotillaError, type Operation } from '@flotilla/protocol';
import type { Gateway } from '../gateway/gateway.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import type { Traces } from '../telemetry/traces.ts';
import { asFlotillaError } from './errors.ts';
import type { Call, Handlers } from './routing.ts';

type OpenAiRoutes = 'models' | 'model' | 'chat' | 'completions' | 'embeddings';
type InferenceRoute = 'chat' | 'completions' | 'embeddings';

/** Their bodies are bytes for the gateway, which reads only what it needs of them. */
export const RAW_BODY_ROUTES = [
  'chat',
  'completions',
  'embeddings',
] as const satisfies readonly InferenceRoute[];

const NO_BODY = Buffer.alloc(0);

export function openaiRoutes(
  gateway: Gateway,
  metrics: Pick<Metrics, 'requestRefused'>,
  traces: Pick<Traces, 'refused'>,
): Pick<Handlers, OpenAiRoutes> {
  return {
    models({ principal, request }) {
      // Asked by a provider's probe, it is here that a loop is found before any request runs into it.
      gateway.hops(request.headers);
      return { object: 'list', data: gateway.models(principal).map(modelView) };
    },
    model({ principal, request }) {
      const id = wildcard(request.params);
      const models = gateway.models(principal);
      const model =
        models.find((entry) => entry.id === id) ?? models.find((entry) => entry.id === `${id}:latest`);
      if (model === undefined) {
        throw new FlotillaError(
          'model_not_found',
          `There is no model ${JSON.stringify(id)} that this key can use.`,
          {
            param: 'model',
          },
        );
      }
      return modelView(model);
    },
    chat: (call) => serve(call, 'chat'),
    completions: (call) => serve(call, 'completions'),
    embeddings: (call) => serve(call, 'embeddings'),
  };

  async function serve(
    { request, reply, principal }: Call<InferenceRoute>,
    operation: Operation,
  ): Promise<void> {
    request.body ??= NO_BODY;
    try {
      await gateway.serve(request, reply, operation, principal);
    } catch (error) {
      const { code } = asFlotillaError(error);
      metrics.requestRefused(operation, code);
      traces.refused(request.headers, operation, code);
      throw error;
    }
  }
}

function modelView({ id, created }: { id: string; created: number }) {
  return { id, object: 'model' as const, created, owned_by: 'flotilla' };
}

/** Ids may hold slashes (`org/model`), as they are or encoded. */
function wildcard(params: unknown): string {
  return String((params as Record<string, string>)['*'] ?? '');
}
