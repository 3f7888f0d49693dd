import type { Flotilla } from '@flotilla/sdk';
import { note } from '../terminal/output.ts';
import { harmless } from '../terminal/text.ts';

export interface ChatSettings {
  model: string;
  max_tokens?: number;
}
export interface Message {
  role: string;
  content: string;
}

/** Streams one answer to stdout. An abort ends it quietly, with what has come so far. */
export async function streamAnswer(
  client: Flotilla,
  request: ChatSettings & { messages: Message[] },
  signal: AbortSignal,
): Promise<{ content: string; stopped: boolean }> {
  const isTerminal = process.stdout.isTTY;
  let content = '';
  let stopped = false;
  try {
    const stream = await client.chat.stream({ ...request }, { signal, on_comment: waiting });
    for await (const { choices } of stream) {
      const delta = choices[0]?.delta;
      const piece =
        delta?.content ?? delta?.tool_calls?.map((call) => JSON.stringify(call.function)).join('') ?? '';
      content += piece;
      // In a pipe the answer is passed on as it is.
      process.stdout.write(isTerminal ? harmless(piece) : piece);
    }
  } catch (error) {
    if (!signal.aborted) {
      if (content !== '') process.stdout.write('\n');
      throw error;
    }
    stopped = true;
  }
  if (!content.endsWith('\n') && (content !== '' || isTerminal)) process.stdout.write('\n');
  return { content, stopped };
}

/** A request that waits long is told its place in the queue. */
function waiting(comment: string): void {
  if (process.stderr.isTTY && comment !== '') note(`(${harmless(comment)})`);
}
