/** Whether an answer is what a client can parse: a page of a proxy in front of a backend is none. */
export function isJson(answer: Uint8Array | string): boolean {
  try {
    JSON.parse(typeof answer === 'string' ? answer : bytesAsText(answer));
    return true;
  } catch {
    return false;
  }
}

/** A byte a character: what is beyond ASCII may stand in JSON's strings alone, and there as well as anything. */
function bytesAsText({ buffer, byteOffset, byteLength }: Uint8Array): string {
  return Buffer.from(buffer, byteOffset, byteLength).toString('latin1');
}
