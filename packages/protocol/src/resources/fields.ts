import { z } from 'zod';

/**
 * What the HTTP API takes and gives, area by area, is in this folder: the schemas behind `routes.ts`. What a name does not
 * say by itself is described there, once: `/openapi.json` and docs/reference/http.md are made from it.
 */
export const time = z.iso.datetime();
export const count = z.number().int().nonnegative();
export const ms = z.number().int().positive();
