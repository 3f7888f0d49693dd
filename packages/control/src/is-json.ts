/** Whether an answer is what a client can parse: a page of a proxy in front of a backend is none. */
export function isJson(answer: Buffer | string): boolean {
  try {
    JSON.parse(answer.toString());
    return true;
  } catch {
    return false;
  }
}
