import { parentPort, workerData } from 'node:worker_threads';
import type { FromLink, LinkThreadData, ToLink } from '../threads.ts';
import { Link } from './link.ts';
import { thisMachine } from './machine.ts';

/** The link thread: everything it needs comes in `workerData`; it ends by itself once it has said `stopped`. */
const port = parentPort;
if (port === null) throw new Error('The link thread is started by the daemon, not by itself.');

const data = workerData as LinkThreadData;
const link = new Link({
  data,
  machine: thisMachine(data.connect_timeout_ms),
  post(message: FromLink) {
    port.postMessage(message);
    if (message.type === 'stopped') port.close();
  },
});
port.on('message', (message: ToLink) => link.hear(message));
link.start();
