import type { Command } from 'commander';
import { withExamples } from '../help.ts';
import { port } from '../parse.ts';
import { keepRunningWithoutReader } from '../terminal/output.ts';
import { runUp, type UpFlags } from '../up/run.ts';

export function addUp(program: Command): void {
  const up = program
    .command('up')
    .description('start here: a control plane with the embedded store, and a node on this machine')
    .option('--port <port>', 'for API and node links; 0 takes a free one (FLOTILLA_PORT, else 7400)', port)
    .option(
      '--host <address>',
      'where it listens; 0.0.0.0 for other machines (FLOTILLA_HOST, else 127.0.0.1)',
    )
    .option('--public-url <url>', 'the address that other machines reach it by (FLOTILLA_PUBLIC_URL)')
    .option('--data-dir <dir>', 'store, admin key and node (FLOTILLA_DATA_DIR, else ~/.flotilla)')
    .option('--no-node', 'no node on this machine')
    .option('--sim', 'a simulated model server, even where there is a real one')
    .option('--json', 'print events as JSON lines, for programs')
    .action((flags: UpFlags) => {
      keepRunningWithoutReader();
      return runUp(flags);
    });
  withExamples(
    up,
    ['flotilla up', 'finds Ollama, llama.cpp, vLLM or LM Studio here; simulates a model where there is none'],
    ['flotilla up --host 0.0.0.0', 'other machines can join; prints how'],
    [
      'flotilla up --no-node --public-url https://fleet.example',
      'the control plane alone, behind a proxy with TLS',
    ],
  );
}
