import {
  FlotillaError,
  type NodeBeatAnswer,
  type NodeRegister,
  type NodeRegisterAnswer,
  PROTOCOL_VERSION,
} from '@flotilla/protocol';
import { type HttpSession, httpDescriptor, httpHealth, openHttpSession } from './http-session.ts';
import type { FleetNode } from './node.ts';
import { type Registration, type RegistrationDeps, admit } from './registration.ts';

/** Nodes that speak plain HTTP: who may come in, and whose session a call belongs to. */
export interface HttpNodes {
  /** @throws FlotillaError `node_in_use`, `revoked`, `unavailable` */
  register(peer: NodePeer, said: NodeRegister, gone: () => boolean): Promise<NodeRegisterAnswer>;
  /** @throws FlotillaError `wrong_session` */
  session(peer: NodePeer, id: string): HttpSession;
}

/** A node, by a credential that is good now. */
export interface NodePeer {
  node: FleetNode;
  /** The credential's hash. */
  credential: string;
}

interface HttpNodesDeps extends Omit<RegistrationDeps, 'heartbeat_ms'> {
  desired(node: FleetNode): NodeBeatAnswer['desired'];
  /** Takes the node's connection up. @throws FlotillaError when it may no longer come in */
  take(peer: NodePeer, registration: Registration): void;
  /** The node uses this credential from now on. */
  used(peer: NodePeer): void;
}

export function createHttpNodes(deps: HttpNodesDeps): HttpNodes {
  const { clock, log, replica } = deps;
  const sessions = new WeakMap<FleetNode, HttpSession>();
  return { register, session };

  async function register(
    peer: NodePeer,
    said: NodeRegister,
    gone: () => boolean,
  ): Promise<NodeRegisterAnswer> {
    const { node } = peer;
    const message = {
      type: 'node.register' as const,
      boot_id: said.boot_id,
      protocol: { min: PROTOCOL_VERSION, max: PROTOCOL_VERSION },
      features: [],
      ...httpDescriptor(said),
      inventory: [],
      backends: httpHealth({ health: said.health, reason: undefined }),
    };
    const received_ms = clock.now_ms();
    const admitted = await admit(deps, node, message, {}, gone);
    if (admitted === undefined) throw new FlotillaError('cancelled', 'The call was broken off.');
    if ('code' in admitted) {
      const { code, message: said_to_it, cause: error } = admitted;
      log.warn({ node: node.id, code, error }, `node session refused: ${said_to_it}`);
      throw new FlotillaError(code, said_to_it);
    }
    const { epoch } = admitted;
    let opened: HttpSession;
    deps.take(peer, {
      epoch,
      message,
      received_ms,
      open(events) {
        opened = openHttpSession({
          id: `${replica}.${epoch}`,
          epoch,
          clock,
          said,
          desired: () => deps.desired(node),
          events,
        });
        return opened;
      },
    });
    sessions.set(node, opened!);
    return { ...opened!.registered(), warnings: node.warnings };
  }

  function session(peer: NodePeer, id: string): HttpSession {
    const found = sessions.get(peer.node);
    if (found === undefined || found.id !== id || !found.open) {
      const elsewhere = id !== '' && !id.startsWith(`${replica}.`);
      throw new FlotillaError(
        'wrong_session',
        elsewhere
          ? 'This session is of another replica, or of one that is no more: register anew. Where that comes again and again, ' +
              "the balancer before the replicas has to send a node's calls to one of them, by their Authorization header."
          : 'This session has ended: register anew.',
      );
    }
    deps.used(peer);
    return found;
  }
}
