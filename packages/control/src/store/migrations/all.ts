import type { Migration } from '../migrate.ts';
import { initial } from './0001-initial.ts';
import { audit } from './0002-audit.ts';
import { tokenLimits } from './0003-token-limits.ts';
import { modelDiscoveries } from './0004-model-discoveries.ts';
import { upstreams } from './0005-upstreams.ts';
import { traces } from './0006-traces.ts';
import { detachedAccounts } from './0007-detached-accounts.ts';
import { replicas } from './0008-replicas.ts';
import { sharedLimits } from './0009-shared-limits.ts';
import { openAndEndedJobs } from './0010-open-and-ended-jobs.ts';
import { namedSessions } from './0011-named-sessions.ts';

/** In order, never edited once released: a change is a new file. */
export const MIGRATIONS: readonly Migration[] = [
  initial,
  audit,
  tokenLimits,
  modelDiscoveries,
  upstreams,
  traces,
  detachedAccounts,
  replicas,
  sharedLimits,
  openAndEndedJobs,
  namedSessions,
];
