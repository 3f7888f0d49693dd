import { z } from 'zod';
import { modelIdSchema } from '../descriptor.ts';
import { count } from './fields.ts';

/** What Flotilla itself reads and makes of the OpenAI surface. */

export const modelView = z
  .object({ id: z.string(), object: z.literal('model'), created: count, owned_by: z.string() })
  .meta({ id: 'Model' });
export const modelList = z.object({ object: z.literal('list'), data: z.array(modelView) });
/** Only what Flotilla reads; every other field reaches the backend as it came. */
export const inferenceBody = z
  .looseObject({
    model: modelIdSchema,
    stream: z.boolean().nullish(),
    stream_options: z.looseObject({ include_usage: z.boolean().nullish() }).nullish(),
    prompt_cache_key: z
      .string()
      .nullish()
      .describe('Requests with the same one go to the same node while it has room.'),
  })
  .meta({ id: 'InferenceRequest' });
