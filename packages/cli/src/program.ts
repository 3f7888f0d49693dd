import { Command, CommanderError } from 'commander';
import { addAudit } from './commands/audit.ts';
import { addBackup, addRestore } from './commands/backup.ts';
import { addChat } from './commands/chat.ts';
import { addControl } from './commands/control.ts';
import { addDoctor } from './commands/doctor.ts';
import { addJobs } from './commands/jobs.ts';
import { addJoin } from './commands/join.ts';
import { addKeys } from './commands/keys.ts';
import { addModels } from './commands/models.ts';
import { addNode } from './commands/node.ts';
import { addNodes } from './commands/nodes.ts';
import { addProviders } from './commands/providers.ts';
import { addRoutes } from './commands/routes.ts';
import { addSim } from './commands/sim.ts';
import { addStore } from './commands/store.ts';
import { addTokens } from './commands/tokens.ts';
import { addUp } from './commands/up.ts';
import { addUsage } from './commands/usage.ts';
import { EXIT, report } from './failure.ts';
import { withDefaultVerb, withExamples } from './help.ts';
import { version } from './version.ts';

export function buildProgram(): Command {
  const program = new Command('flotilla')
    .description(
      'One control plane for your AI machines: one OpenAI-compatible endpoint over the models on all of them.',
    )
    .version(version(), '-V, --version', 'print the version')
    .helpOption('-h, --help', 'show help; each command has its own')
    .helpCommand(false)
    .configureHelp({ sortOptions: false, showGlobalOptions: false })
    .showHelpAfterError('Add --help to see how it is used.')
    .exitOverride();

  program.commandsGroup('Start:');
  addUp(program);
  addControl(program);
  addJoin(program);
  addNode(program);
  program.commandsGroup('Use:');
  addChat(program);
  addModels(program);
  addUsage(program);
  program.commandsGroup('Administer:');
  addNodes(program);
  addJobs(program);
  addKeys(program);
  addTokens(program);
  addProviders(program);
  addRoutes(program);
  addAudit(program);
  addDoctor(program);
  addBackup(program);
  addRestore(program);
  addStore(program);
  program.commandsGroup('Try and test:');
  addSim(program);
  // `flotilla nodes --help` is enough; `flotilla nodes help show` would only be one more thing to read.
  for (const command of program.commands) command.helpCommand(false);
  return withExamples(
    program,
    ['flotilla up', 'control plane and node on this machine, and a curl that works'],
    ['flotilla tokens create', 'lets another machine join: flotilla join URL --token fle_…'],
    ['flotilla chat hello', 'talks to a model'],
  );
}

/** Runs one command. Resolves to the exit code: 0 done, 1 failed, 2 wrong usage. */
export async function run(argv: readonly string[]): Promise<number> {
  try {
    await buildProgram().parseAsync(withDefaultVerb(argv), { from: 'user' });
    return process.exitCode === undefined ? EXIT.done : Number(process.exitCode);
  } catch (error) {
    // Commander has said what is wrong with the command line; or it printed the help that was asked for.
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.usage;
    return report(error, argv.includes('--json'));
  }
}
