import { CommandError } from './failure.ts';

/** Something by its id, or by its name, which is what people know. */
export async function findNamed<T extends { id: string; name: string }>(
  list: AsyncIterable<T>,
  wanted: string,
  noun: string,
): Promise<T> {
  for await (const item of list) if (item.id === wanted || item.name === wanted) return item;
  throw new CommandError(`There is no ${noun} ${wanted}.`, `See which there are: flotilla ${noun}s`);
}
