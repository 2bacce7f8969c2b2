// Makes calls with @connectrpc/connect-node: see README.md. The first argument is the folder that has node_modules, the
// second one of grpc, grpc-web (over HTTP/1.1) and grpc-web-h2.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, protocol, file] = process.argv.slice(2);
const require = createRequire(`${folder}/`);
const { Code, ConnectError } = require("@connectrpc/connect");
const { compressionGzip, createGrpcTransport, createGrpcWebTransport } = require("@connectrpc/connect-node");
const { createFileRegistry, fromBinary, toBinary } = require("@bufbuild/protobuf");
const { FileDescriptorSetSchema } = require("@bufbuild/protobuf/wkt");

const { protoset, calls } = JSON.parse(readFileSync(file));
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(protoset)));

function transport({ address, ca, gzip, compress }) {
  const options = {
    baseUrl: `${ca ? "https" : "http"}://${address}`,
    httpVersion: protocol === "grpc-web" ? "1.1" : "2",
    acceptCompression: gzip ? [compressionGzip] : [],
    sendCompression: compress ? compressionGzip : null,
    compressMinBytes: 0,
    nodeOptions: ca ? { ca: readFileSync(ca) } : {},
  };
  return (protocol === "grpc" ? createGrpcTransport : createGrpcWebTransport)(options);
}

async function outcome(call) {
  const { rpc, bytes, stream, authorization, seconds, cancelAfter } = call;
  const [service, name] = rpc.split("/");
  const method = registry.getService(service).methods.find((method) => method.name === name);
  const request = fromBinary(method.input, Buffer.from(bytes, "base64"));
  const headers = new Headers(authorization ? { authorization } : {});
  const milliseconds = seconds ? seconds * 1000 : undefined;
  const cancel = new AbortController();
  const messages = [];
  const took = (message) => messages.push(Buffer.from(toBinary(method.output, message)).toString("base64"));
  try {
    if (stream) {
      const once = (async function* () { yield request; })();
      const answer = await transport(call).stream(method, cancel.signal, milliseconds, headers, once);
      for await (const message of answer.message) {
        took(message);
        if (messages.length === cancelAfter) cancel.abort();
      }
    } else {
      took((await transport(call).unary(method, cancel.signal, milliseconds, headers, request)).message);
    }
    return { code: 0, message: "", details: [], messages };
  } catch (reason) {
    const error = ConnectError.from(reason);
    const details = error.details.map(({ type, value }) => ({ type, value: value && Buffer.from(value).toString("base64") }));
    return { code: error.code ?? Code.Unknown, message: error.rawMessage, details, messages };
  }
}

for (const call of calls) console.log(JSON.stringify(await outcome(call)));
// Its connections are kept for a while, which would keep the process.
process.exit(0);
