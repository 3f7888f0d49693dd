import type { Clock, LinkWrites, Log } from '@flotilla/core';
import {
  type Descriptor,
  type ErrorCode,
  type NodeMessageOf,
  PROTOCOL_VERSION,
  readDescriptor,
  readNodeMessage,
} from '@flotilla/protocol';
import type { Epochs } from './epochs.ts';
import { CLOSE, type Link, type LinkEvents, type LinkSocket, openLink, refuseLink } from './link.ts';
import type { FleetNode } from './node.ts';

/**
 * From an upgraded socket to an accepted connection; `admit` is the part of it that a session over plain HTTP shares.
 *
 *     upgraded ──node.register──▶ asked ──incumbent gone, epoch taken──▶ accepted
 *         └── 10 s, unreadable, no common protocol, node in use ──▶ refused (an `error`, then closed)
 *
 * A newer registration of the same node overtakes an older one that is still on its way.
 */
export interface RegistrationDeps {
  clock: Clock;
  log: Log;
  epochs: Epochs;
  replica: string;
  heartbeat_ms: number;
  /** Another process of the node is linked to another replica, and alive, as that one says. */
  inUseElsewhere(node: FleetNode, message: NodeMessageOf<'node.register'>): Promise<boolean>;
}

/** A node that may come in: its message and its new epoch. */
export interface Registration {
  epoch: number;
  message: NodeMessageOf<'node.register'>;
  received_ms: number;
  /** Opens its link, once the one it had before has been let go. */
  readonly open: (events: LinkEvents) => Link;
}

interface Refused {
  close: number;
  code: ErrorCode;
  message: string;
  /** What kept it out, for the log: the node is told no more than the message. */
  cause?: unknown;
}

const REGISTER_WITHIN_MS = 10_000;
const INCUMBENT_ANSWER_MS = 1000;
const latest = new WeakMap<FleetNode, object>();

/** @returns undefined where it was refused; the peer has been told */
export async function takeRegistration(
  deps: RegistrationDeps,
  node: FleetNode,
  ws: LinkSocket,
  writes: LinkWrites,
): Promise<Registration | undefined> {
  const { clock, log, replica, heartbeat_ms } = deps;
  const refuse = ({ close, code, message, cause }: Refused): undefined => {
    log.warn({ node: node.id, code, error: cause }, `node link refused: ${message}`);
    refuseLink(ws, clock, close, { code, message });
  };
  const misbehaved = (message: string) =>
    refuse({ close: CLOSE.misbehaved, code: 'invalid_request', message });
  const tooSoon = () => misbehaved('A node waits for node.registered before it says more.');
  const message = await firstMessage(ws, clock, tooSoon);
  if (message === undefined) return undefined;
  if (typeof message === 'string') return misbehaved(message);
  const received_ms = clock.now_ms();
  const admitted = await admit(deps, node, message, ws, () => ws.readyState !== ws.OPEN);
  if (admitted === undefined) return undefined;
  if ('code' in admitted) return refuse(admitted);
  ws.off('message', tooSoon);
  const { epoch } = admitted;
  const open = (events: LinkEvents) => openLink({ ws, writes, epoch, replica, heartbeat_ms, clock, events });
  return { epoch, message, received_ms, open };
}

/**
 * Whether a node that has introduced itself may come in, whichever way it came.
 * @param caller one object for this try: the latest of a node's tries overtakes those before it
 * @returns undefined when the caller has gone meanwhile
 */
export async function admit(
  { clock, epochs, inUseElsewhere }: Pick<RegistrationDeps, 'clock' | 'epochs' | 'inUseElsewhere'>,
  node: FleetNode,
  message: NodeMessageOf<'node.register'>,
  caller: object,
  gone: () => boolean,
): Promise<{ epoch: number } | Refused | undefined> {
  const refused = (close: number, code: ErrorCode, text: string) => ({ close, code, message: text });
  const { min, max } = message.protocol;
  if (PROTOCOL_VERSION < min || PROTOCOL_VERSION > max) {
    return refused(
      CLOSE.protocol,
      'invalid_request',
      `The node speaks protocol ${min} to ${max}, the control plane ${PROTOCOL_VERSION}: upgrade the older of them.`,
    );
  }
  if (node.superseded.includes(message.boot_id)) {
    return refused(CLOSE.superseded, 'node_in_use', 'A newer daemon has this credential now.');
  }
  const in_use =
    (await incumbentAnswers(node, message.boot_id, clock)) || (await inUseElsewhere(node, message));
  if (in_use) {
    warnOfSecond(node, clock);
    return refused(
      CLOSE.nodeInUse,
      'node_in_use',
      'Another daemon with this credential is connected and alive.',
    );
  }
  // An epoch that comes to nothing would end the link that the node has by now, perhaps at another replica.
  if (gone()) return undefined;
  latest.set(node, caller);
  let epoch: number | undefined;
  try {
    epoch = await epochs.take(node.id);
  } catch (cause) {
    return { ...refused(CLOSE.tryLater, 'unavailable', 'The store does not answer; try again.'), cause };
  }
  if (epoch === undefined) return refused(CLOSE.revoked, 'revoked', 'This node has been deleted.');
  if (gone()) return undefined;
  if (latest.get(node) !== caller) {
    return refused(
      CLOSE.superseded,
      'node_in_use',
      'A newer connection of this node has overtaken this one.',
    );
  }
  latest.delete(node);
  return { epoch };
}

/** Another process holds the link here and is alive. The same process has only lost its old socket. */
export async function incumbentAnswers(
  node: FleetNode,
  boot_id: string,
  clock: Clock,
  within_ms = INCUMBENT_ANSWER_MS,
): Promise<boolean> {
  const { link } = node;
  if (link === null || !link.open || node.boot_id === boot_id || !(await link.alive(within_ms))) return false;
  warnOfSecond(node, clock);
  return true;
}

function warnOfSecond(node: FleetNode, clock: Clock): void {
  node.alarm = { text: 'A second daemon tried to connect with this credential.', at_ms: clock.now_ms() };
}

/**
 * The registration, a sentence why it is none, or undefined where the peer has gone.
 * @param more called when another message comes behind the registration; left for the caller to take off
 */
function firstMessage(
  ws: LinkSocket,
  clock: Clock,
  more: () => void,
): Promise<NodeMessageOf<'node.register'> | string | undefined> {
  return new Promise((resolve) => {
    const finish = (value: NodeMessageOf<'node.register'> | string | undefined) => {
      timer.cancel();
      ws.off('message', onMessage);
      ws.off('close', onClose);
      resolve(value);
    };
    const onMessage = (data: Buffer, binary: boolean) => {
      const read = binary ? undefined : readNodeMessage(data.toString());
      if (read?.ok && read.message.type === 'node.register') {
        finish(read.message);
        // At once: what comes in the same read is told before any promise is.
        ws.once('message', more);
      } else finish(read?.ok === false ? read.error.message : 'The first message must be node.register.');
    };
    const onClose = () => finish(undefined);
    const timer = clock.after(REGISTER_WITHIN_MS, () => finish('No node.register within 10 s.'));
    ws.on('message', onMessage);
    ws.on('close', onClose);
  });
}

/** The descriptor as far as it is sound; what is not becomes warnings on the node. */
export function readNodeDescriptor(node: FleetNode, input: unknown): Descriptor {
  const { descriptor, warnings } = readDescriptor(input, node.record.name);
  node.warnings = warnings;
  return descriptor;
}
