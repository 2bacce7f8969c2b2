// Watches with @connectrpc/connect-node until it is killed, and calls again when a stream ends: see README.md. The second
// argument is grpc or grpc-web (over HTTP/1.1).

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

const [folder, protocol, text] = process.argv.slice(2);
const { address, rpc, bytes, protoset } = JSON.parse(text);
const require = createRequire(`${folder}/`);
const { ConnectError } = require("@connectrpc/connect");
const { createGrpcTransport, createGrpcWebTransport } = require("@connectrpc/connect-node");
const { createFileRegistry, fromBinary, toBinary } = require("@bufbuild/protobuf");
const { FileDescriptorSetSchema } = require("@bufbuild/protobuf/wkt");
const print = (line) => console.log(JSON.stringify(line));

const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(protoset)));
const [service, name] = rpc.split("/");
const method = registry.getService(service).methods.find((method) => method.name === name);
const request = fromBinary(method.input, Buffer.from(bytes, "base64"));
const baseUrl = `http://${address}`;
const transport =
  protocol === "grpc" ? createGrpcTransport({ baseUrl, httpVersion: "2" }) : createGrpcWebTransport({ baseUrl, httpVersion: "1.1" });
for (;;) {
  try {
    const once = (async function* () { yield request; })();
    const answer = await transport.stream(method, undefined, undefined, undefined, once);
    for await (const message of answer.message) print({ message: Buffer.from(toBinary(method.output, message)).toString("base64") });
    print({ ended: 0 });
  } catch (reason) {
    print({ ended: ConnectError.from(reason).code });
  }
  await sleep(200);
}
