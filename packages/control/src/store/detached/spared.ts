/**
 * A deadline passes over jobs that a node of this list holds, and over the list's own jobs while somebody holds them.
 * A subquery is hashed once a statement. Looked through for each row, a list of a thousand jobs whose ends are on their
 * way costs a million comparisons a look.
 * @param list the parameter that has it: a JSON array of ids
 */
export const notSpared = (list: string): string => {
  const ids = `(select json_array_elements_text(${list}::json))`;
  return `(state = 'queued' or not (node in ${ids} or id in ${ids}))`;
};
