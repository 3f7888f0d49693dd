import { homedir } from 'node:os';
import { controlSettings, type SettingName, settingMeta } from '@flotilla/control';
import { configSchema, ENVIRONMENT } from '@flotilla/daemon';
import type { z } from 'zod';
import { buildProgram, loadCommands } from '../../packages/cli/src/program.ts';
import { code, page, table } from './markdown.ts';
import { jsonSchemaOf, typeText } from './schema.ts';

type Command = ReturnType<typeof buildProgram>;

const COMMANDS = await loadCommands();

export function settingsPage(): string {
  const program = buildProgram(COMMANDS);
  const named = (parent: Command, name: string) => parent.commands.find((own) => own.name() === name)!;
  return page(
    'Settings',
    '`packages/control/src/config.ts` and `packages/daemon/src/config.ts`',
    INTRODUCTION,
    `## Control plane\n${CONTROL}\n\n${controlTable(named(program, 'control'))}`,
    `## Node\n${NODE}\n\n${nodeTable(named(program, 'join'), named(named(program, 'node'), 'run'))}`,
    `### Each of \`backends\`\n\n${backendTable()}`,
    `## Commands\n\n${OTHERS}`,
  );
}

const INTRODUCTION = `A flag outranks the environment; the environment outranks the file. Settings are read once, at start. What is wrong
is refused by name, and what is no setting is pointed out with what was probably meant. \`flotilla up\` reads the settings
of the control plane except \`DATABASE_URL\`, \`NATS_URL\` and \`FLOTILLA_ADMIN_KEY\`, and passes those of the node on to it.`;

const CONTROL = 'Of `flotilla control` and `flotilla up`. There is no file.';
const NODE = `Of \`flotilla join\` and \`flotilla node run\`. The file is \`<state-dir>/node.yaml\`; \`join\` writes the flags it is given into
it. In a variable, a list is written \`a,b\`, a map \`key=value,key=value\`.`;

const OTHERS = table(
  ['Variable', 'Default', 'Meaning'],
  [
    ['`FLOTILLA_URL`', '`http://127.0.0.1:7400`', 'The control plane that commands ask; `--url`.'],
    [
      '`FLOTILLA_API_KEY`',
      'on loopback the admin key of `flotilla up`',
      'The key that commands show; `--api-key`.',
    ],
    ['`FLOTILLA_NODE_STATE_DIR`', '`<data-dir>/node`', "A node's own files; `--state-dir`."],
    ['`HTTPS_PROXY`', '', 'The way to a control plane with `https`, for nodes and commands.'],
    ['`NODE_EXTRA_CA_CERTS`', '', 'A file with certificate authorities of your own to trust, for `https`.'],
  ],
);

function controlTable(command: Command): string {
  const rows = (Object.keys(controlSettings.shape) as SettingName[]).map((name) => {
    const { variable, why, secret } = settingMeta(name);
    const schema = controlSettings.shape[name];
    return [
      variable.map(code).join(' or '),
      flagOf(name, command),
      defaultText(name, schema),
      secret === true ? 'secret text' : valueText(name, schema),
      why,
    ];
  });
  return table(['Variable', 'Flag', 'Default', 'Value', 'Meaning'], rows);
}

function nodeTable(...commands: Command[]): string {
  const rows = Object.entries(configSchema.shape).map(([name, schema]) => {
    const variables = Object.keys(ENVIRONMENT).filter((variable) => ENVIRONMENT[variable]!.setting === name);
    return [
      code(name),
      variables.map(code).join(' or '),
      flagOf(name, ...commands),
      defaultText(name, schema),
      valueText(name, schema),
      jsonSchemaOf(schema).description ?? '',
    ];
  });
  return table(['In `node.yaml`', 'Variable', 'Flag', 'Default', 'Value', 'Meaning'], rows);
}

function backendTable(): string {
  const item = configSchema.shape.backends.unwrap().element;
  const rows = Object.entries(item.shape).map(([name, schema]) => [
    code(name),
    name === 'url' ? 'always' : 'if wanted',
    valueText(name, schema),
    jsonSchemaOf(schema).description ?? '',
  ]);
  return table(['Name', 'Given', 'Value', 'Meaning'], rows);
}

/** `--label`, given several times, is `labels`. */
function flagOf(setting: string, ...commands: Command[]): string {
  const wanted = `--${setting.replaceAll('_', '-')}`;
  const flags = commands.flatMap((command) => command.options.map(({ long }) => long));
  const flag = flags.find((long) => long === wanted || `${long}s` === wanted);
  return code(flag ?? '');
}

function valueText(name: string, schema: z.ZodType): string {
  const unit = UNITS.find(({ suffix }) => name.endsWith(suffix));
  const text = typeText(jsonSchemaOf(schema));
  return unit === undefined ? text : text.replace('whole number', unit.name);
}

function defaultText(name: string, schema: z.ZodType): string {
  const value = jsonSchemaOf(schema).default;
  // An empty list or map is the same as none.
  if (value === undefined || typeof value === 'object') return '';
  const text = (typeof value === 'string' ? value : JSON.stringify(value)).replace(homedir(), '~');
  const readable = typeof value === 'number' ? readableOf(name, value) : text;
  return readable === text ? code(text) : `${code(text)} (${readable})`;
}

const UNITS = [
  { suffix: '_ms', name: 'milliseconds', steps: [[60_000, 'min'] as const, [1000, 's'] as const] },
  { suffix: '_bytes', name: 'bytes', steps: [[1024 * 1024, 'MiB'] as const] },
  { suffix: '_days', name: 'days', steps: [] },
];

/** `300000` is read as 5 min. */
function readableOf(name: string, value: number): string {
  const steps = UNITS.find(({ suffix }) => name.endsWith(suffix))?.steps ?? [];
  const step = steps.find(([size]) => value % size === 0);
  return step === undefined ? String(value) : `${value / step[0]} ${step[1]}`;
}
