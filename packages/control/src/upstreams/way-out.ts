import { isThisMachine } from '@flotilla/core';
import { Agent, type Dispatcher, EnvHttpProxyAgent } from 'undici';

/** The variables by which every program finds its way out, as this control plane was given them. */
export interface ProxySettings {
  https_proxy?: string | undefined;
  http_proxy?: string | undefined;
  no_proxy?: string | undefined;
}

/**
 * Connections to one provider: through the proxy that is set, as nodes and commands go to the control plane; to this
 * machine itself, and to what `NO_PROXY` names, without one.
 */
export function wayOut(base_url: string, connect_timeout_ms: number, proxies: ProxySettings): Dispatcher {
  const options = {
    connect: { timeout: connect_timeout_ms },
    // Deadlines are the relay's own: exact, and one timer for all requests.
    headersTimeout: 0,
    bodyTimeout: 0,
    allowH2: false,
  };
  const { https_proxy, http_proxy, no_proxy } = proxies;
  if ((https_proxy ?? http_proxy) === undefined || isThisMachine(new URL(base_url)))
    return new Agent(options);
  return new EnvHttpProxyAgent({
    ...options,
    // To the proxy itself, and through it.
    connectTimeout: connect_timeout_ms,
    // Empty is "none": undefined would have it look into the environment by itself.
    httpsProxy: https_proxy ?? http_proxy ?? '',
    httpProxy: http_proxy ?? '',
    noProxy: no_proxy ?? '',
  });
}
