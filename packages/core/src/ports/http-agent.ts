/**
 * HTTP as the relay asks for it: a request sent, its answer told by calls. The daemon and the control plane pass an
 * undici agent; what is here is the part of its shape that the relay uses.
 */
export interface HttpAgent {
  dispatch(request: HttpAsk, calls: HttpCalls): boolean;
}

export interface HttpAsk {
  origin: string;
  path: string;
  method: 'POST' | 'GET';
  /** Name and value in turn. */
  headers: string[];
  body: Buffer | null;
}

export type HttpHeaders = Record<string, string | string[] | undefined>;

export interface HttpControl {
  abort(reason: Error): void;
  pause(): void;
  resume(): void;
}

/** In this order: a start (again after a connection that broke), the head, pieces, and one of the two ends. */
export interface HttpCalls {
  onRequestStart(control: HttpControl): void;
  onResponseStart(control: HttpControl, status: number, headers: HttpHeaders): void;
  onResponseData(control: HttpControl, chunk: Buffer): void;
  onResponseEnd(): void;
  onResponseError(control: HttpControl, error: Error): void;
}
