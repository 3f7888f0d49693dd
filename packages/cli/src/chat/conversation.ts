import { createInterface } from 'node:readline/promises';
import type { Flotilla } from '@flotilla/sdk';
import { report } from '../failure.ts';
import { note } from '../terminal/output.ts';
import { type ChatSettings, type Message, streamAnswer } from './answer.ts';

/** Question and answer until Ctrl-D, or Ctrl-C at the prompt. An error ends one answer, not the conversation. */
export async function converse(client: Flotilla, settings: ChatSettings, before: Message[]): Promise<void> {
  const messages = [...before];
  const terminal = createInterface({ input: process.stdin, output: process.stdout });
  let answering: AbortController | undefined;
  // readline has the terminal: Ctrl-C is an event of it, not a signal.
  terminal.on('SIGINT', () => (answering ? answering.abort() : terminal.close()));
  note(`${settings.model}. Ctrl-C stops an answer, Ctrl-D ends the conversation.`);
  for (;;) {
    const question = await ask(terminal);
    if (question === undefined) return;
    if (question.trim() === '') continue;
    messages.push({ role: 'user', content: question });
    answering = new AbortController();
    try {
      const { content } = await streamAnswer(client, { ...settings, messages }, answering.signal);
      messages.push({ role: 'assistant', content });
    } catch (error) {
      report(error, false);
      messages.pop();
    }
    answering = undefined;
  }
}

/** Undefined when the input has ended. */
async function ask(terminal: ReturnType<typeof createInterface>): Promise<string | undefined> {
  const closed = new AbortController();
  const close = () => closed.abort();
  terminal.once('close', close);
  try {
    return await terminal.question('> ', { signal: closed.signal });
  } catch {
    process.stdout.write('\n');
    return undefined;
  } finally {
    terminal.off('close', close);
  }
}
