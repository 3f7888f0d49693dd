import { type Command, InvalidArgumentError } from 'commander';
import { CommandError } from '../failure.ts';
import { withExamples, withWords } from '../help.ts';
import { collect, port, positive, whole } from '../parse.ts';
import { parentGone, stopSignal } from '../process-end.ts';
import { SimBackend } from '../sim/backend.ts';
import { FAULTS, parseFault, type PlannedFault } from '../sim/fault.ts';
import { keepRunningWithoutReader, note, print, printJson } from '../terminal/output.ts';
import { plural } from '../terminal/text.ts';

interface SimFlags {
  port: number;
  host: string;
  model?: string[];
  ttftMs: number;
  tokensPerSecond?: number;
  slots?: number;
  apiKey?: string;
  answerTokens: number;
  instant?: boolean;
  fault?: PlannedFault[];
  json?: boolean;
}

export function addSim(program: Command): void {
  const sim = program.command('sim').description('simulated parts, for trying, testing and measuring');
  const backend = sim
    .command('backend')
    .description('run a simulated OpenAI-compatible model server; every answer says that it is simulated')
    .option('--port <port>', 'where it listens; 0 takes a free one', port, 7480)
    .option('--host <address>', 'on which address', '127.0.0.1')
    .option('--model <id>', 'a model it has; repeat for several (default: flotilla-sim)', collect)
    .option('--ttft-ms <ms>', 'time to the first token', whole, 0)
    .option('--tokens-per-second <n>', 'how fast it generates (default: all at once)', positive)
    .option('--answer-tokens <n>', 'the least length of an answer', whole, 0)
    .option('--slots <n>', 'requests it works on at once; others wait (default: all)', positive)
    .option('--api-key <key>', 'the key it wants to be given')
    .option('--instant', 'the same few bytes for every request, as fast as can be: for benchmarks')
    .option(
      '--fault <name[:n]>',
      'do this wrong, for the first n requests only if n is given; repeat for several',
      collectFault,
    )
    .option('--json', 'print JSON, for programs')
    .action(runBackend);
  withExamples(
    backend,
    [
      'flotilla sim backend',
      'a model server on port 7480; `flotilla join … --backend http://127.0.0.1:7480` uses it',
    ],
    [
      'flotilla sim backend --ttft-ms 300 --tokens-per-second 40 --slots 2',
      'one as slow and narrow as a real one',
    ],
    [
      'flotilla sim backend --fault 503:3 --fault cut-mid-event:1',
      'three errors, then a cut answer, then all well',
    ],
    ['curl 127.0.0.1:7480/sim/stats', 'what it was asked; DELETE begins to count anew'],
    [
      `curl 127.0.0.1:7480/sim/fault -d '{"fault":"500","first":2}'`,
      'a fault while it runs; {"fault":null} ends it, "for_ms" limits it',
    ],
  );
  withWords(backend, 'Faults (of requests for inference)', Object.entries(FAULTS));
}

function collectFault(value: string, before: PlannedFault[] | undefined): PlannedFault[] {
  const fault = parseFault(value);
  if (typeof fault === 'string') throw new InvalidArgumentError(fault);
  return [...(before ?? []), fault];
}

async function runBackend(flags: SimFlags): Promise<void> {
  keepRunningWithoutReader();
  const models = flags.model ?? ['flotilla-sim'];
  const backend = new SimBackend({
    host: flags.host,
    port: flags.port,
    models,
    ttft_ms: flags.ttftMs,
    tokens_per_second: flags.tokensPerSecond ?? Number.POSITIVE_INFINITY,
    slots: flags.slots ?? Number.POSITIVE_INFINITY,
    api_key: flags.apiKey,
    answer_tokens: flags.answerTokens,
    instant: flags.instant === true,
    faults: flags.fault ?? [],
  });
  await backend.listen().catch((error: unknown) => {
    throw withAdvice(error, flags);
  });
  const url = `${backend.url}/v1`;
  // Before it says where it is: whoever reads that may stop it at once.
  const stopped = Promise.race([stopSignal(), parentGone()]);
  process.send?.({ type: 'listening', url });
  if (flags.json) printJson({ event: 'listening', url, models });
  else {
    print(`Simulated backend (no real model) with ${plural(models.length, 'model')} at ${url}`);
    note('Ctrl-C stops it.');
  }
  await stopped;
  await backend.close();
}

function withAdvice(error: unknown, { host, port: taken }: SimFlags): unknown {
  if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE') return error;
  const message = `Port ${taken} on ${host} is taken.`;
  return new CommandError(message, 'Give another with --port; 0 takes a free one.', { cause: error });
}
