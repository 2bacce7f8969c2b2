// Makes calls with @grpc/grpc-js: see README.md. The first argument is the folder that has node_modules.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, file] = process.argv.slice(2);
const grpc = createRequire(`${folder}/`)("@grpc/grpc-js");

// Messages are passed on as bytes, so no generated code is needed.
const same = (bytes) => bytes;
const { identity, gzip } = grpc.compressionAlgorithms;

function outcome({ address, ca, rpc, bytes, stream, authorization, seconds, compress, cancelAfter }) {
  const credentials = ca ? grpc.credentials.createSsl(readFileSync(ca)) : grpc.credentials.createInsecure();
  // It always says that it accepts gzip.
  const client = new grpc.Client(address, credentials, { "grpc.default_compression_algorithm": compress ? gzip : identity });
  const metadata = new grpc.Metadata();
  if (authorization) metadata.set("authorization", authorization);
  const options = seconds ? { deadline: Date.now() + seconds * 1000 } : {};
  const request = Buffer.from(bytes, "base64");
  const messages = [];
  return new Promise((resolve) => {
    const ended = (error, answer) => {
      const [details] = error?.metadata?.get("grpc-status-details-bin") ?? [];
      if (answer) messages.push(answer.toString("base64"));
      client.close();
      resolve({ code: error?.code ?? 0, message: error?.details ?? "", details: details?.toString("base64") ?? "", messages });
    };
    if (stream) {
      const call = client.makeServerStreamRequest(`/${rpc}`, same, same, request, metadata, options);
      call.on("data", (message) => {
        messages.push(message.toString("base64"));
        if (messages.length === cancelAfter) call.cancel();
      });
      call.on("error", ended).on("end", () => ended(null));
    } else {
      client.makeUnaryRequest(`/${rpc}`, same, same, request, metadata, options, ended);
    }
  });
}

for (const call of JSON.parse(readFileSync(file)).calls) console.log(JSON.stringify(await outcome(call)));
