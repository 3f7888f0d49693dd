import { controlSettings, type SettingName, settingMeta } from '../../packages/control/src/index.ts';
import { ENVIRONMENT } from '../../packages/daemon/src/index.ts';
import { withDefaultVerb } from '../../packages/cli/src/help.ts';
import { buildProgram, loadCommands } from '../../packages/cli/src/program.ts';

type Command = ReturnType<typeof buildProgram>;

const COMMANDS = await loadCommands();

/**
 * What a page, a unit or a compose file tells somebody to run, read as the program reads it, and not run.
 * @returns what the program would say against it
 */
export function complaintOf(words: readonly string[]): string | undefined {
  const program = buildProgram(COMMANDS);
  let said = '';
  tame(program, (text) => (said += text));
  try {
    program.parse(withDefaultVerb(words), { from: 'user' });
  } catch (error) {
    // `--help` is for a person; it parses.
    if ((error as { exitCode?: unknown }).exitCode === 0) return undefined;
    return `flotilla ${words.join(' ')}: ${said || String(error)}`;
  }
  return undefined;
}

function tame(command: Command, write: (text: string) => void): void {
  // A group alone prints its help, which is no command that anybody is told to run.
  if (command.commands.length === 0) command.action(() => undefined);
  command.exitOverride().configureOutput({ writeOut: write, writeErr: write });
  for (const child of command.commands) tame(child, write);
}

/** The settings of the control plane. */
export const CONTROL_VARIABLES: ReadonlySet<string> = new Set(
  (Object.keys(controlSettings.shape) as SettingName[]).flatMap((name) => settingMeta(name).variable),
);

/** The variables that something of Flotilla reads; other programs' are not among them. */
export const READ_VARIABLES: ReadonlySet<string> = new Set([
  ...CONTROL_VARIABLES,
  ...Object.keys(ENVIRONMENT),
  'FLOTILLA_URL',
  'FLOTILLA_API_KEY',
  'FLOTILLA_NODE_STATE_DIR',
  'FLOTILLA_NODE_STATUS_PORT',
  'FLOTILLA_TEST_DATABASE_URL',
]);
