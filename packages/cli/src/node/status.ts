import { formatDuration } from '../terminal/moment.ts';
import { type Column, facts, table, terminalColumns } from '../terminal/table.ts';

/** What the daemon answers to `status`, as far as it is shown. */
export interface LocalStatus {
  name: string;
  node_id: string;
  version: string;
  pid: number;
  state_dir: string;
  status: string;
  uptime_ms: number;
  ready: boolean;
  not_ready_because: string[];
  link: {
    state: string;
    url: string;
    reason: string | null;
    last_ack_ms_ago: number | null;
    rtt_ms: number | null;
  };
  cordoned: boolean;
  drain: { reason: string; deadline_at: string } | null;
  backends: LocalBackend[];
  pools: { id: string; in_flight: number; capacity: number; capacity_from: string }[];
  attempts: unknown[];
  ignored_servers: { url: string; reason: string }[];
  /** Absent: the daemon is older than it. */
  journal?: { health: string; reason?: string };
}

interface LocalBackend {
  id: string;
  kind: string;
  url: string;
  health: string;
  reason: string | null;
  models: { id: string }[];
}

export function statusText(status: LocalStatus): string {
  const { link, drain, journal } = status;
  const beat = link.last_ack_ms_ago === null ? 'never' : `${formatDuration(link.last_ack_ms_ago)} ago`;
  const head = facts([
    ['name', `${status.name} (${status.node_id})`],
    [
      'daemon',
      `${status.status} for ${formatDuration(status.uptime_ms)}, process ${status.pid}, version ${status.version}`,
    ],
    ['gets work', status.ready ? 'yes' : `no: ${status.not_ready_because.join(' ')}`],
    ['link', `${link.state}, ${link.url}`],
    ['because', link.state === 'connected' ? null : link.reason],
    ['last beat', link.rtt_ms === null ? beat : `${beat}, ${Math.round(link.rtt_ms)} ms there and back`],
    ['detached work', journal?.health === 'down' ? `none: ${journal.reason ?? 'no reason known'}` : null],
    ['drain', drain && `${drain.reason}, until ${drain.deadline_at}`],
    ['at work', String(status.attempts.length)],
    ['files', status.state_dir],
  ]);
  const ignored = status.ignored_servers.map(({ url, reason }) => `  ${url}: ${reason}`);
  return [
    head,
    status.backends.length === 0
      ? `No model server found. Start one; or name one, under \`backends\` in ${status.state_dir}/node.yaml, or with\nflotilla node run --backend URL`
      : backendTable(status),
    ignored.length === 0 ? '' : `Not used:\n${ignored.join('\n')}`,
  ]
    .filter((part) => part !== '')
    .join('\n\n');
}

function backendTable(status: LocalStatus): string {
  const columns: Column<LocalBackend>[] = [
    { head: 'BACKEND', cell: ({ id }) => id },
    { head: 'URL', cell: ({ url }) => url, flexible: true },
    {
      head: 'HEALTH',
      cell: ({ health }) => health,
      style: ({ health }) => (health === 'healthy' ? 'green' : 'red'),
    },
    { head: 'MODELS', cell: ({ models }) => models.map(({ id }) => id).join(', '), flexible: true },
    { head: 'NOTE', cell: ({ reason }) => reason ?? '', flexible: true },
  ];
  return table(status.backends, columns, terminalColumns());
}
