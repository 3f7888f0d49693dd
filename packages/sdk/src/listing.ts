export interface Page<T> {
  data: T[];
  /** Null on the last page. */
  next_after: string | null;
}

/** A list that pages by cursor: `for await` runs over all of it, `page()` fetches one page. */
export class Listing<T> implements AsyncIterable<T> {
  readonly #fetch: (cursor: { after?: string }) => Promise<Page<T>>;

  constructor(fetch: (cursor: { after?: string }) => Promise<Page<T>>) {
    this.#fetch = fetch;
  }

  /** The first page, or the one after a cursor. */
  page(after?: string): Promise<Page<T>> {
    return this.#fetch(after === undefined ? {} : { after });
  }

  async *[Symbol.asyncIterator](): AsyncIterator<T> {
    let after: string | undefined;
    do {
      const page = await this.page(after);
      yield* page.data;
      // A cursor that does not move would page for ever.
      if (page.next_after === after) return;
      after = page.next_after ?? undefined;
    } while (after !== undefined);
  }

  /** The first `most` items, over as many pages as that takes. */
  async take(most: number): Promise<T[]> {
    const items: T[] = [];
    if (most <= 0) return items;
    for await (const item of this) if (items.push(item) >= most) break;
    return items;
  }
}
