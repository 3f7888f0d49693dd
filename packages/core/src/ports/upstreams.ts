/**
 * Providers and routes in the store. A provider's key lies there sealed; names of routes and aliases share one space,
 * and a provider that a route names stays: each write holds the configuration row, so two of them cannot pass by each other.
 */
export interface Upstreams {
  loadProviders(): Promise<ProviderRecord[]>;
  insertProvider(provider: ProviderRecord): Promise<ProviderWrite>;
  updateProvider(id: string, patch: ProviderPatch): Promise<ProviderWrite>;
  deleteProvider(id: string): Promise<'deleted' | 'unknown' | { used_by: string[] }>;

  loadRoutes(): Promise<RouteRecord[]>;
  insertRoute(route: RouteRecord): Promise<RouteWrite>;
  updateRoute(id: string, patch: RoutePatch): Promise<RouteWrite>;
  deleteRoute(id: string): Promise<boolean>;

  /**
   * What the secret key of this installation has sealed at its first start: the one given, if there was none.
   * Null: there is none, and none was given.
   */
  secretCanary(sealed: string | null): Promise<string | null>;
  /**
   * Replaces the canary and what is sealed, all in one transaction.
   * @returns how many secrets there were
   */
  resealSecrets(canary: string, reseal: (sealed: string, bound_to: string) => string): Promise<number>;
}

export type ProviderWrite = { provider: ProviderRecord } | { refused: 'name_taken' | 'unknown' };
export type RouteWrite =
  | { route: RouteRecord }
  | { refused: 'unknown' }
  | { refused: 'name_taken' | 'no_provider'; name: string };

/** An upstream API that the control plane calls itself. */
export interface ProviderRecord {
  id: string;
  name: string;
  /** With its path prefix: `https://api.example.com/v1`. */
  base_url: string;
  /** Sealed; null: it asks for none. */
  key_sealed: string | null;
  /** The header that carries the key; `authorization` carries it as a bearer token. */
  key_header: string;
  labels: Record<string, string>;
  /** Requests at once. */
  concurrency: number;
  enabled: boolean;
  probe: 'models' | 'none';
  /** Null: the control plane's own setting. */
  connect_timeout_ms: number | null;
  first_byte_timeout_ms: number | null;
  idle_timeout_ms: number | null;
  created_at: number;
}
export type ProviderPatch = Partial<Omit<ProviderRecord, 'id' | 'created_at'>>;

/** Where a route's requests may go: a provider, or the nodes that have the model and the labels. */
export interface RouteTarget {
  /** Its id; null: the nodes. */
  provider: string | null;
  /** The model's name there. */
  model: string;
  labels: Record<string, string>;
}

/** A public model and the targets that serve it, the preferred one first. */
export interface RouteRecord {
  id: string;
  name: string;
  aliases: string[];
  targets: RouteTarget[];
  enabled: boolean;
  created_at: number;
}
export type RoutePatch = Partial<Omit<RouteRecord, 'id' | 'created_at'>>;
