/** Times leave as ISO-8601 in UTC. */
export function iso(wall_ms: number): string {
  return new Date(wall_ms).toISOString();
}

export function isoOrNull(wall_ms: number | null): string | null {
  return wall_ms === null ? null : iso(wall_ms);
}
