// Watches with @grpc/grpc-js until it is killed, and calls again when a stream ends: see README.md.

import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

const [folder, text] = process.argv.slice(2);
const { address, rpc, bytes } = JSON.parse(text);
const grpc = createRequire(`${folder}/`)("@grpc/grpc-js");
const same = (bytes) => bytes;
const print = (line) => console.log(JSON.stringify(line));

const client = new grpc.Client(address, grpc.credentials.createInsecure());
for (;;) {
  await new Promise((ended) => {
    const call = client.makeServerStreamRequest(`/${rpc}`, same, same, Buffer.from(bytes, "base64"));
    call.on("data", (message) => print({ message: message.toString("base64") }));
    call.on("error", () => {}).on("status", ({ code }) => ended(print({ ended: code })));
  });
  await sleep(200);
}
