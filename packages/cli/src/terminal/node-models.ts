import type { ModelDiscovery, NodeModels } from '@flotilla/sdk';
import { ago } from './moment.ts';
import { type Column, table, terminalColumns } from './table.ts';

interface Row {
  backend: string;
  model: string;
  loaded: boolean | null;
  does: string;
  context: number | null;
  /** What is odd of the model, or why there is no list. */
  note: string;
  ill: boolean;
}

/** What the backends told in one discovery. */
export function discoveryTable(discovery: ModelDiscovery): string {
  return modelTable(
    discovery.backends.flatMap((told) =>
      rowsOf(told, { none: `no list: ${told.reason ?? 'not told'}`, empty: 'it has no model', age: '' }),
    ),
  );
}

/** The last list of each backend, with its age. */
export function lastLists({ backends }: NodeModels): string {
  return modelTable(
    backends.flatMap((list) =>
      rowsOf(list, {
        none: 'never asked, or never told',
        empty: 'it had no model',
        age: `list from ${ago(list.discovered_at)}`,
      }),
    ),
  );
}

type Told = ModelDiscovery['backends'][number] | NodeModels['backends'][number];

function rowsOf(told: Told, say: { none: string; empty: string; age: string }): Row[] {
  const version = told.version === null ? '' : ` ${told.version}`;
  const backend = told.kind === null ? told.backend : `${told.backend} (${told.kind}${version})`;
  const line = (note: string, ill: boolean): Row => {
    return { backend, model: '–', loaded: null, does: '', context: null, note, ill };
  };
  if (told.models === null) return [line(say.none, true)];
  if (told.models.length === 0) return [line(join(say.empty, say.age), false)];
  const rows = told.models.map((model): Row => {
    const barred = 'allowed' in model && !model.allowed ? 'not allowed on this node' : '';
    return {
      backend,
      model: model.id,
      loaded: model.loaded,
      does: model.operations.join(','),
      context: model.context_length,
      note: join(barred, say.age),
      ill: false,
    };
  });
  const left_out = (told.models_total ?? 0) - told.models.length;
  return left_out <= 0 ? rows : [...rows, line(`${left_out} more, too many for one message`, false)];
}

function join(...parts: string[]): string {
  return parts.filter((part) => part !== '').join('; ');
}

function modelTable(rows: Row[]): string {
  const columns: Column<Row>[] = [
    { head: 'BACKEND', cell: (row) => row.backend, flexible: true },
    { head: 'MODEL', cell: (row) => row.model, flexible: true },
    { head: 'LOADED', cell: (row) => (row.loaded === null ? '–' : row.loaded ? 'yes' : 'no') },
    { head: 'DOES', cell: (row) => row.does, flexible: true, optional: true },
    { head: 'CONTEXT', cell: (row) => row.context?.toString() ?? '–', align: 'right', optional: true },
    { head: 'NOTE', cell: (row) => row.note, flexible: true, style: (row) => (row.ill ? 'red' : undefined) },
  ];
  return table(rows, columns, terminalColumns());
}
