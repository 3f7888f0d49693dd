import { z } from 'zod';

/** What every list of the HTTP API takes and gives, and what a route names a thing by. */
export const pageQuery = z.object({
  limit: z.coerce.number().int().min(1).max(500).default(50).describe('How many at most.'),
  after: z.string().max(256).optional().describe('The `next_after` of the page before.'),
});
export function page<T extends z.ZodType>(item: T) {
  return z.object({
    data: z.array(item),
    next_after: z.string().nullable().describe('What `after` takes for the next page; null on the last.'),
  });
}
export const idParams = z.object({ id: z.string().min(1).max(128) });
