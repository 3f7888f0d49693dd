import { buildProgram, loadCommands } from '../../packages/cli/src/program.ts';
import { page } from './markdown.ts';

type Command = ReturnType<typeof buildProgram>;

const COMMANDS = await loadCommands();

export function commandsPage(): string {
  const commands = allOf(buildProgram(COMMANDS));
  return page(
    'Commands',
    'the commands themselves (`packages/cli/src/commands/`)',
    INTRODUCTION,
    ...commands.map(({ name, command }) => `## ${name}\n\n\`\`\`text\n${helpOf(command)}\n\`\`\``),
  );
}

const INTRODUCTION = `What \`--help\` says, on one page. In the repository \`flotilla\` is \`npx flotilla\`. Exit codes: 0 done, 1 failed,
2 wrong usage.`;

const WIDTH = 100;

function allOf(command: Command, before = ''): { name: string; command: Command }[] {
  const name = `${before}${command.name()}`;
  return [{ name, command }, ...command.commands.flatMap((own) => allOf(own, `${name} `))];
}

function helpOf(command: Command): string {
  let text = '';
  command.configureOutput({
    writeOut: (piece) => {
      text += piece;
    },
    getOutHelpWidth: () => WIDTH,
    getOutHasColors: () => false,
  });
  command.outputHelp();
  return text.trimEnd();
}
