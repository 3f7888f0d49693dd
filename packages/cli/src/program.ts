import { Command, CommanderError } from 'commander';
import { EXIT, report } from './failure.ts';
import { withDefaultVerb, withExamples } from './help.ts';
import { version } from './version.ts';

type Add = (program: Command) => unknown;

/** Under the headings of the help, in its order: each in a file that is loaded for whoever runs or explains it. */
const COMMANDS: Record<string, Record<string, () => Promise<Add>>> = {
  'Start:': {
    up: async () => (await import('./commands/up.ts')).addUp,
    control: async () => (await import('./commands/control.ts')).addControl,
    join: async () => (await import('./commands/join.ts')).addJoin,
    node: async () => (await import('./commands/node.ts')).addNode,
  },
  'Use:': {
    chat: async () => (await import('./commands/chat.ts')).addChat,
    models: async () => (await import('./commands/models.ts')).addModels,
    usage: async () => (await import('./commands/usage.ts')).addUsage,
  },
  'Administer:': {
    nodes: async () => (await import('./commands/nodes.ts')).addNodes,
    jobs: async () => (await import('./commands/jobs.ts')).addJobs,
    keys: async () => (await import('./commands/keys.ts')).addKeys,
    tokens: async () => (await import('./commands/tokens.ts')).addTokens,
    providers: async () => (await import('./commands/providers.ts')).addProviders,
    routes: async () => (await import('./commands/routes.ts')).addRoutes,
    audit: async () => (await import('./commands/audit.ts')).addAudit,
    doctor: async () => (await import('./commands/doctor.ts')).addDoctor,
    backup: async () => (await import('./commands/backup.ts')).addBackup,
    restore: async () => (await import('./commands/backup.ts')).addRestore,
    store: async () => (await import('./commands/store.ts')).addStore,
  },
  'Try and test:': {
    sim: async () => (await import('./commands/sim.ts')).addSim,
  },
};

interface Loaded {
  title: string;
  commands: readonly Add[];
}

/**
 * All commands, or only the one of this name, if there is one: the program starts in half the time without the files of
 * the others. What is no command's name has all of them, for the help and for "did you mean".
 */
export async function loadCommands(name?: string): Promise<Loaded[]> {
  const groups = Object.entries(COMMANDS).map(([title, group]) => ({ title, group }));
  const named = groups.find(({ group }) => name !== undefined && Object.hasOwn(group, name));
  if (named !== undefined) return [{ title: named.title, commands: [await named.group[name!]!()] }];
  return Promise.all(
    groups.map(async ({ title, group }) => ({
      title,
      commands: await Promise.all(Object.values(group).map((load) => load())),
    })),
  );
}

export function buildProgram(groups: readonly Loaded[]): Command {
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

  for (const { title, commands } of groups) {
    program.commandsGroup(title);
    for (const add of commands) add(program);
  }
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
    await buildProgram(await loadCommands(argv[0])).parseAsync(withDefaultVerb(argv), { from: 'user' });
    return process.exitCode === undefined ? EXIT.done : Number(process.exitCode);
  } catch (error) {
    // Commander has said what is wrong with the command line; or it printed the help that was asked for.
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.usage;
    return report(error, argv.includes('--json'));
  }
}
