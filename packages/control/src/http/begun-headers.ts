import type { FastifyReply } from 'fastify';

/** What an answer carries whatever it will be, for who writes its head on the raw one. What we set is text, what fastify sets as well. */
export function begunHeaders(reply: FastifyReply): Record<string, string> {
  return reply.getHeaders() as Record<string, string>;
}
