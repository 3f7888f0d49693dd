import { type Msg, type NatsConnection, connect } from '@nats-io/transport-node';
import type { Bus, BusListener, Clock, Log } from '@flotilla/core';

/**
 * The bus over NATS: one connection, two subjects. The sender stands in the subject, so that a message is its bytes.
 *
 *     dialling ──first connection──▶ connected ◀──▶ away (the client dials again, for ever)        any ──close()──▶ closed
 *         └─ 250 ms to 2 s after a failure, again
 *
 * A control plane starts, and serves its own nodes, whether or not the server is there.
 */
export interface NatsOptions {
  /** Servers of one cluster, with commas. */
  url: string;
  /** Whose replicas these are: other installations may use the same server. */
  installation: string;
  replica: string;
  clock: Clock;
  log: Log;
}

const RETRY_LEAST_MS = 250;
const RETRY_MOST_MS = 2000;
const CONNECT_WITHIN_MS = 2000;
/** A connection that is cut without a word is noticed after two of these. */
const PING_EVERY_MS = 2000;

export function openNats({ url, installation, replica, clock, log }: NatsOptions): Bus {
  const prefix = `flotilla.${installation}`;
  let listener: BusListener | null = null;
  let connection: NatsConnection | null = null;
  let up = false;
  let closed = false;
  let told_away = false;
  let told_error = false;
  const dialled = dial();

  return {
    get connected() {
      return up;
    },
    tell(data) {
      // The client would keep what is said while it is away, and say it when it is old.
      if (up) publish(`${prefix}.all.${replica}`, data);
    },
    send(other, data) {
      if (up) publish(`${prefix}.to.${other}.${replica}`, data);
    },
    listen(who) {
      listener = who;
      if (up) who.connected();
    },
    async close() {
      closed = true;
      up = false;
      await dialled;
      // What was said last is still to go out.
      await connection?.drain().catch(() => undefined);
    },
  };

  /** What cannot be sent is lost, as anything on the bus may be; thrown, it would end the process. */
  function publish(subject: string, data: Uint8Array): void {
    try {
      connection!.publish(subject, data);
    } catch (error) {
      log.warn({ error, bytes: data.byteLength }, 'A message to other replicas could not be sent.');
    }
  }

  async function dial(): Promise<void> {
    for (let wait_ms = RETRY_LEAST_MS; !closed; wait_ms = Math.min(2 * wait_ms, RETRY_MOST_MS)) {
      try {
        connection = await connect({ ...readUrl(url), ...OPTIONS, name: `flotilla ${replica}` });
        break;
      } catch (error) {
        if (!told_away)
          log.warn({ error }, 'NATS does not answer: this replica serves its own nodes until it does.');
        told_away = true;
        await new Promise<void>((over) => void clock.after(wait_ms, over));
      }
    }
    if (connection === null) return;
    const heard = (hear: 'told' | 'sent') => (error: Error | null, message: Msg) => {
      if (error !== null || closed) return;
      const from = message.subject.slice(message.subject.lastIndexOf('.') + 1);
      if (from === replica) return;
      try {
        listener?.[hear](from, message.data);
      } catch (failure) {
        // Thrown on, it would end the client's reading, and this replica would hear nothing more.
        log.error({ error: failure, replica: from }, 'What another replica said met a fault of ours.');
      }
    };
    connection.subscribe(`${prefix}.all.*`, { callback: heard('told') });
    connection.subscribe(`${prefix}.to.${replica}.*`, { callback: heard('sent') });
    // Whoever hears of the connection may be answered at once.
    await connection.flush().catch(() => undefined);
    turned(true);
    void follow(connection);
  }

  async function follow(nats: NatsConnection): Promise<void> {
    for await (const status of nats.status()) {
      if (status.type === 'disconnect') turned(false);
      else if (status.type === 'reconnect') turned(true);
      else if (status.type === 'error') {
        if (!told_error) log.warn({ error: status.error }, 'NATS reports an error.');
        told_error = true;
      }
    }
  }

  function turned(now: boolean): void {
    if (up === now || closed) return;
    up = now;
    told_error = false;
    if (now) {
      log.info({}, 'Connected to NATS.');
      listener?.connected();
    } else {
      log.warn({}, 'NATS is away: this replica serves its own nodes until it is back.');
      listener?.disconnected();
    }
  }
}

const OPTIONS = {
  timeout: CONNECT_WITHIN_MS,
  pingInterval: PING_EVERY_MS,
  maxPingOut: 2,
  reconnect: true,
  maxReconnectAttempts: -1,
  reconnectTimeWait: RETRY_LEAST_MS,
  noEcho: true,
  // A password that is being changed is wrong for a while.
  ignoreAuthErrorAbort: true,
};

/** The client takes names and passwords apart from the address. */
function readUrl(text: string): {
  servers: string[];
  user?: string;
  pass?: string;
  token?: string;
  tls?: object;
} {
  const urls = text.split(',').map((one) => new URL(one.trim()));
  const servers = urls.map((url) => `${url.hostname}:${url.port || 4222}`);
  const { protocol, username, password } = urls[0]!;
  const user = decodeURIComponent(username);
  const pass = decodeURIComponent(password);
  return {
    servers,
    ...(user !== '' && (pass === '' ? { token: user } : { user, pass })),
    ...(protocol === 'tls:' && { tls: {} }),
  };
}
