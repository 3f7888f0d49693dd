import { commandsPage } from './commands.ts';
import { errorsPage } from './errors.ts';
import { httpPage } from './http.ts';
import { settingsPage } from './settings.ts';
import { speedPage } from './speed.ts';

/** Every generated page: its path in the repository, and the text it has to have. */
export const PAGES: Record<string, () => string> = {
  'docs/reference/commands.md': commandsPage,
  'docs/reference/errors.md': errorsPage,
  'docs/reference/http.md': httpPage,
  'docs/reference/settings.md': settingsPage,
  'docs/reference/speed.md': speedPage,
};
