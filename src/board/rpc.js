// Calls of LeadService by gRPC-Web, over fetch.
import { service } from './schema.js';
import { decode, encode } from './protobuf.js';
import { settings } from './settings.js';

/** The gRPC codes that the board tells apart. */
export const Code = { UNKNOWN: 2, INVALID_ARGUMENT: 3, NOT_FOUND: 5, PERMISSION_DENIED: 7, UNIMPLEMENTED: 12, UNAVAILABLE: 14, UNAUTHENTICATED: 16 };

const TRAILERS = 0x80;
const UNARY_MS = 15_000;

/** Codes that say that the same call would fail again, when the server itself says so. */
const FINAL = new Set([Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED, Code.UNIMPLEMENTED]);

export class RpcError extends Error {
  /** `fromServer`: these are the server's own words, not those of a proxy before it. */
  constructor(code, text, fromServer = false) {
    super(text);
    this.code = code;
    /** Calling again would not help. */
    this.isFinal = fromServer && FINAL.has(code);
  }
}

/** Calls a method that answers once. */
export async function call(method, request, signal) {
  const patience = AbortSignal.timeout(UNARY_MS);
  for await (const answer of stream(method, request, signal ? AbortSignal.any([signal, patience]) : patience)) return answer;
  throw new RpcError(Code.UNAVAILABLE, 'the server gave no answer');
}

/** Calls a method that answers with a stream, which ends by throwing an RpcError unless it ended well. */
export async function* stream(method, request, signal) {
  const response = await send(method, request, signal);
  const status = response.headers.get('grpc-status');
  if (status !== null && status !== '0') throw failure(response.headers);
  for await (const [flag, bytes] of frames(response.body)) {
    if (!(flag & TRAILERS)) {
      yield decode(`${method}Response`, bytes);
      continue;
    }
    const trailers = new Map(new TextDecoder().decode(bytes).split('\r\n').map((line) => {
      const at = line.indexOf(':');
      return [line.slice(0, at).toLowerCase(), line.slice(at + 1).trim()];
    }));
    if (trailers.get('grpc-status') !== '0') throw failure(trailers);
    return;
  }
  throw new RpcError(Code.UNAVAILABLE, 'the connection broke');
}

async function send(method, request, signal) {
  const message = encode(`${method}Request`, request);
  const body = new Uint8Array(5 + message.length);
  new DataView(body.buffer).setUint32(1, message.length);
  body.set(message, 5);
  const headers = { 'content-type': 'application/grpc-web+proto', 'x-grpc-web': '1' };
  if (settings.token) headers.authorization = `Bearer ${settings.token}`;
  let response;
  try {
    response = await fetch(`/${service}/${method}`, { method: 'POST', headers, body, signal, cache: 'no-store', credentials: 'omit' });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new RpcError(Code.UNAVAILABLE, 'the server cannot be reached');
  }
  if (response.ok && response.headers.get('content-type')?.startsWith('application/grpc-web')) return response;
  // A page of a proxy is not worth showing.
  const isText = response.headers.get('content-type')?.startsWith('text/plain');
  const text = isText ? (await response.text().catch(() => '')).trim() : '';
  throw new RpcError(CODES[response.status] ?? Code.UNAVAILABLE, text || `the server answered ${response.status}`);
}

const CODES = { 400: Code.INVALID_ARGUMENT, 401: Code.UNAUTHENTICATED, 403: Code.PERMISSION_DENIED };

/** The failure that a status in headers or trailers means. */
function failure(fields) {
  let words = fields.get('grpc-message') ?? '';
  try {
    words = decodeURIComponent(words);
  } catch {
    // As it is, then.
  }
  const status = fields.get('grpc-status');
  return new RpcError(Number(status ?? Code.UNKNOWN), words, isFromServer(fields.get('grpc-status-details-bin')));
}

/** Whether the details of a status have the ErrorInfo with the domain (field 2) that every error of leadfold carries. */
function isFromServer(details) {
  try {
    const bytes = atob((details ?? '').split(',')[0]);
    return bytes.includes('type.googleapis.com/google.rpc.ErrorInfo') && bytes.includes('\x12\x08leadfold');
  } catch {
    return false;
  }
}

/** The frames of a body: a flag, a length in four bytes, a message. */
async function* frames(body) {
  const reader = body.getReader();
  let rest = new Uint8Array(0);
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        throw error.name === 'TypeError' ? new RpcError(Code.UNAVAILABLE, 'the connection broke') : error;
      });
      if (done) return;
      rest = rest.length === 0 ? value : joined(rest, value);
      let at = 0;
      while (rest.length - at >= 5) {
        const length = new DataView(rest.buffer, rest.byteOffset + at).getUint32(1);
        if (rest.length - at - 5 < length) break;
        yield [rest[at], rest.subarray(at + 5, at + 5 + length)];
        at += 5 + length;
      }
      rest = rest.subarray(at);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function joined(a, b) {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}
