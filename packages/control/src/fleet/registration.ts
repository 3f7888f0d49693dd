import type { Clock, Log } from '@flotilla/core';
import {
  type ErrorCode,
  type NodeMessageOf,
  PROTOCOL_VERSION,
  readDescriptor,
  readNodeMessage,
} from '@flotilla/protocol';
import type { Duplex } from 'node:stream';
import type { WebSocket } from 'ws';
import type { Epochs } from './epochs.ts';
import { CLOSE, refuseLink } from './link.ts';
import type { FleetNode } from './node.ts';

/**
 * From an upgraded socket to an accepted connection.
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
}

export interface Registration {
  ws: WebSocket;
  socket: Duplex;
  epoch: number;
  message: NodeMessageOf<'node.register'>;
  received_ms: number;
}

const REGISTER_WITHIN_MS = 10_000;
const INCUMBENT_ANSWER_MS = 1000;
const latest = new WeakMap<FleetNode, WebSocket>();

/** @returns undefined where it was refused; the peer has been told */
export async function takeRegistration(
  deps: RegistrationDeps,
  node: FleetNode,
  ws: WebSocket,
  socket: Duplex,
): Promise<Registration | undefined> {
  const { clock, log } = deps;
  const refuse = (code: number, error: ErrorCode, message: string): undefined => {
    log.warn({ node: node.id, code: error }, `node link refused: ${message}`);
    refuseLink(ws, clock, code, { code: error, message });
  };
  const tooSoon = () =>
    refuse(CLOSE.misbehaved, 'invalid_request', 'A node waits for node.registered before it says more.');
  const message = await firstMessage(ws, clock, tooSoon);
  if (message === undefined) return undefined;
  if (typeof message === 'string') return refuse(CLOSE.misbehaved, 'invalid_request', message);
  const received_ms = clock.now_ms();
  const { min, max } = message.protocol;
  if (PROTOCOL_VERSION < min || PROTOCOL_VERSION > max) {
    return refuse(
      CLOSE.protocol,
      'invalid_request',
      `The node speaks protocol ${min} to ${max}, the control plane ${PROTOCOL_VERSION}: upgrade the older of them.`,
    );
  }
  if (await incumbentAnswers(node, message.boot_id)) {
    node.alarm = { text: 'A second daemon tried to connect with this credential.', at_ms: clock.now_ms() };
    return refuse(
      CLOSE.nodeInUse,
      'node_in_use',
      'Another daemon with this credential is connected and alive.',
    );
  }
  latest.set(node, ws);
  const epoch = await deps.epochs.take(node.id).catch(() => null);
  if (epoch === null) return refuse(CLOSE.tryLater, 'unavailable', 'The store does not answer; try again.');
  if (epoch === undefined) return refuse(CLOSE.revoked, 'revoked', 'This node has been deleted.');
  if (ws.readyState !== ws.OPEN) return undefined;
  if (latest.get(node) !== ws) {
    return refuse(CLOSE.superseded, 'node_in_use', 'A newer connection of this node has overtaken this one.');
  }
  latest.delete(node);
  ws.off('message', tooSoon);
  return { ws, socket, epoch, message, received_ms };
}

/** Another process holds the link and is alive. The same process has only lost its old socket. */
async function incumbentAnswers(node: FleetNode, boot_id: string): Promise<boolean> {
  const { link } = node;
  if (link === null || !link.open || node.boot_id === boot_id) return false;
  return link.alive(INCUMBENT_ANSWER_MS);
}

/**
 * The registration, a sentence why it is none, or undefined where the peer has gone.
 * @param more called when another message comes behind the registration; left for the caller to take off
 */
function firstMessage(
  ws: WebSocket,
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
export function readNodeDescriptor(node: FleetNode, input: unknown) {
  const { descriptor, warnings } = readDescriptor(input, node.record.name);
  node.warnings = warnings;
  return { descriptor, warnings };
}
