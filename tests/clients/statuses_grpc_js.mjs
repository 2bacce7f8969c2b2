// Makes calls with @grpc/grpc-js and prints how each ended: as statuses_grpcio.py does, with the same arguments.
// The first argument is the folder whose node_modules has @grpc/grpc-js.

import { createRequire } from "node:module";

const [folder, calls] = process.argv.slice(2);
const grpc = createRequire(`${folder}/`)("@grpc/grpc-js");

// Messages are passed on as bytes, so no generated code is needed.
const same = (bytes) => bytes;

function outcome({ address, path, request, stream, token, seconds }) {
  const client = new grpc.Client(address, grpc.credentials.createInsecure());
  const metadata = new grpc.Metadata();
  if (token) metadata.set("authorization", `Bearer ${token}`);
  const options = seconds ? { deadline: Date.now() + seconds * 1000 } : {};
  const bytes = Buffer.from(request, "base64");
  return new Promise((resolve) => {
    const ended = (error) => {
      const [details] = error?.metadata?.get("grpc-status-details-bin") ?? [];
      client.close();
      resolve({ code: error?.code ?? 0, details: details?.toString("base64") ?? "", text: error?.details });
    };
    if (stream) {
      const call = client.makeServerStreamRequest(path, same, same, bytes, metadata, options);
      call.on("data", () => {}).on("error", ended).on("end", () => ended(null));
    } else {
      client.makeUnaryRequest(path, same, same, bytes, metadata, options, ended);
    }
  });
}

for (const call of JSON.parse(calls)) console.log(JSON.stringify(await outcome(call)));
