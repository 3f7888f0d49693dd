import { text } from 'node:stream/consumers';
import type { Command } from 'commander';
import type { Flotilla } from '@flotilla/sdk';
import { converse } from '../chat/conversation.ts';
import { type ChatSettings, streamAnswer } from '../chat/answer.ts';
import { type ClientFlags, openClient, withClient } from '../client.ts';
import { CommandError, UsageError } from '../failure.ts';
import { withExamples } from '../help.ts';
import { positive } from '../parse.ts';
import { printJson } from '../terminal/output.ts';

interface ChatFlags extends ClientFlags {
  model?: string;
  system?: string;
  maxTokens?: number;
}

export function addChat(program: Command): void {
  const chat = program
    .command('chat [prompt...]')
    .description('talk to a model, streaming; without a prompt a conversation, or the prompt from stdin')
    .option(
      '-m, --model <model>',
      'which one (default: the first of `flotilla models` that is not for embeddings)',
    )
    .option('--system <text>', 'what the model is told before')
    .option('--max-tokens <n>', 'the longest answer', positive)
    .action(runChat);
  withExamples(
    withClient(chat),
    [
      'flotilla chat -m MODEL Why is the sky blue?',
      'one question, one answer; MODEL is one of `flotilla models`',
    ],
    ['flotilla chat', 'a conversation: Ctrl-C stops an answer, Ctrl-D ends it'],
    ['git diff | flotilla chat --system "Review this."', 'the prompt from a pipe'],
  );
}

async function runChat(words: string[], flags: ChatFlags): Promise<void> {
  const client = await openClient(flags);
  const asked = words.join(' ').trim();
  const isConversation = asked === '' && process.stdin.isTTY && !flags.json;
  const prompt =
    asked !== '' && asked !== '-' ? asked : isConversation ? '' : (await text(process.stdin)).trim();
  if (prompt === '' && !isConversation) {
    throw new UsageError('There is no prompt: stdin was empty.', 'Give one: flotilla chat hello');
  }
  const settings: ChatSettings = {
    model: flags.model ?? (await firstModel(client)),
    ...(flags.maxTokens && { max_tokens: flags.maxTokens }),
  };
  const messages = flags.system === undefined ? [] : [{ role: 'system', content: flags.system }];
  if (isConversation) return converse(client, settings, messages);
  messages.push({ role: 'user', content: prompt });
  if (flags.json) return printJson(await client.chat.create({ ...settings, messages }));

  const stop = new AbortController();
  process.once('SIGINT', () => stop.abort());
  const { stopped } = await streamAnswer(client, { ...settings, messages }, stop.signal);
  // As a shell expects of what Ctrl-C ended.
  if (stopped) process.exitCode = 130;
}

async function firstModel(client: Flotilla): Promise<string> {
  const models = await client.models.list();
  const first = models.find(({ id }) => !/embed/i.test(id)) ?? models[0];
  if (first === undefined) {
    throw new CommandError('There is no model yet.', 'See what the nodes say: flotilla nodes');
  }
  return first.id;
}
