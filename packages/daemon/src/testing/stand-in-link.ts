import { BroadcastChannel, parentPort, workerData } from 'node:worker_threads';
import type { FromLink, LinkThreadData, ToLink } from '../threads.ts';

/**
 * A link thread without a link, for tests of the main thread: what the main thread says goes out on a channel named
 * after the control plane's address, and what a test says on it is said to the main thread, or done.
 */
export type FromTest = { say: FromLink } | { crash: string };
export type FromStandIn = { started: Omit<LinkThreadData, 'progress'> } | { heard: ToLink };

const data = workerData as LinkThreadData;
const channel = new BroadcastChannel(data.control_url);
const { progress: _progress, ...started } = data;
channel.postMessage({ started } satisfies FromStandIn);
channel.onmessage = (event: { data: FromTest }) => {
  const order = event.data;
  if ('say' in order) parentPort?.postMessage(order.say);
  if ('crash' in order) throw new Error(order.crash);
};
parentPort?.on('message', (heard: ToLink) => channel.postMessage({ heard } satisfies FromStandIn));
