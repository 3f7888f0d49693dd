import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** A certificate authority of the test's own, made by `openssl`, which every machine that runs the tests has. */
export interface Authority {
  /** Its certificate's file, and what is in it. */
  readonly path: string;
  readonly pem: string;
  /** Signs a new certificate for these names, and gives it with its new key. */
  issue(...names: string[]): Promise<Issued>;
}

interface Issued {
  cert: string;
  key: string;
}

const NEW_KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];

export async function makeAuthority(dir: string): Promise<Authority> {
  const path = join(dir, 'authority.pem');
  const key_path = join(dir, 'authority.key');
  const subject = ['-days', '2', '-subj', '/CN=Authority of a test'];
  await run('openssl', ['req', '-x509', ...NEW_KEY, '-keyout', key_path, '-out', path, ...subject]);
  let issued = 0;
  return {
    path,
    pem: await readFile(path, 'utf8'),
    async issue(...names) {
      const at = join(dir, `issued-${++issued}`);
      const alternatives = names.map((name) => `${/^[\d.]+$/.test(name) ? 'IP' : 'DNS'}:${name}`);
      await writeFile(`${at}.ext`, `subjectAltName=${alternatives.join(',')}\n`);
      const asked = ['-keyout', `${at}.key`, '-out', `${at}.csr`, '-subj', `/CN=${names[0]}`];
      await run('openssl', ['req', ...NEW_KEY, ...asked]);
      const signer = ['-CA', path, '-CAkey', key_path, '-CAcreateserial', '-days', '2'];
      await run('openssl', [
        'x509',
        '-req',
        '-in',
        `${at}.csr`,
        ...signer,
        '-extfile',
        `${at}.ext`,
        '-out',
        `${at}.pem`,
      ]);
      return { cert: await readFile(`${at}.pem`, 'utf8'), key: await readFile(`${at}.key`, 'utf8') };
    },
  };
}
