// Calls of LeadService by gRPC-Web, over fetch.
import { service } from './schema.js';
import { decode, encode } from './protobuf.js';
import { settings } from './settings.js';

/** The gRPC codes that the board tells apart. */
export const Code = { INVALID_ARGUMENT: 3, NOT_FOUND: 5, PERMISSION_DENIED: 7, RESOURCE_EXHAUSTED: 8, UNAVAILABLE: 14, UNAUTHENTICATED: 16 };

const TRAILERS = 0x80;
const UNARY_MS = 15_000;

export class RpcError extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
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
  if (status !== null && status !== '0') throw failure(status, response.headers.get('grpc-message'));
  for await (const [flag, bytes] of frames(response.body)) {
    if (!(flag & TRAILERS)) {
      yield decode(`${method}Response`, bytes);
      continue;
    }
    const trailers = new Map(new TextDecoder().decode(bytes).split('\r\n').map((line) => {
      const at = line.indexOf(':');
      return [line.slice(0, at).toLowerCase(), line.slice(at + 1).trim()];
    }));
    if (trailers.get('grpc-status') !== '0') throw failure(trailers.get('grpc-status'), trailers.get('grpc-message'));
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
  if (response.ok) return response;
  const text = (await response.text().catch(() => '')).trim();
  throw new RpcError(CODES[response.status] ?? Code.UNAVAILABLE, text || `the server answered ${response.status}`);
}

const CODES = { 400: Code.INVALID_ARGUMENT, 401: Code.UNAUTHENTICATED, 403: Code.PERMISSION_DENIED };

function failure(status, text) {
  let words = text ?? '';
  try {
    words = decodeURIComponent(words);
  } catch {
    // As it is, then.
  }
  return new RpcError(Number(status ?? Code.UNAVAILABLE), words);
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
