import { parentPort, workerData } from 'node:worker_threads';
import { systemClock, systemRandom } from '../clock.ts';
import type { FromLink, LinkThreadData, ToLink } from '../threads.ts';
import { openLeaseClock } from './lease-clock.ts';
import { Link } from './link.ts';

/** The link thread: everything it needs comes in `workerData`; it ends by itself once it has said `stopped`. */
const port = parentPort;
if (port === null) throw new Error('The link thread is started by the daemon, not by itself.');

const link = new Link({
  data: workerData as LinkThreadData,
  clock: systemClock,
  random: systemRandom,
  lease_clock: openLeaseClock(),
  post(message: FromLink) {
    port.postMessage(message);
    if (message.type === 'stopped') port.close();
  },
});
port.on('message', (message: ToLink) => link.hear(message));
link.start();
