// Watches a lead, for ever: across restarts of the server, without missing or repeating anything.
//
//     npm install
//     npx tsx watch.ts 127.0.0.1:50051 LEAD_ID
//
// An address that begins with https:// is called over TLS. LEADFOLD_CA_FILE names the PEM file of the authority that signed
// the server's certificate, unless it is a public one. LEADFOLD_TOKEN holds the bearer token, where the server asks for one.

import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import * as grpc from "@grpc/grpc-js";
import * as loader from "@grpc/proto-loader";
import protobuf from "protobufjs";

/** Milliseconds: a heartbeat comes every 15 s, so this much silence means trouble. */
const SILENCE = 45_000;
/** Milliseconds: the first and the longest wait before the server is tried again. */
const BACKOFF = [200, 5_000] as const;

interface Lead { version: string; messageCount: string; documentCount: string }
interface Change {
  version: string;
  change: "activity" | "document" | "profileField" | "checklistItem";
  activity?: { type: string; status: string; summary: string };
  document?: { filename: string };
  profileField?: string;
  checklistItem?: { code: string; status: string };
}
interface WatchLeadResponse {
  snapshot?: { lead: Lead };
  update?: { lead: Lead; changes: Change[] };
  heartbeat?: { version: string };
}

const PROTOS = fileURLToPath(new URL("../../proto", import.meta.url));
// Versions are 64 bits wide: as numbers of JavaScript they would not be exact.
const definition = loader.loadSync("leadfold/v1/lead_service.proto", { includeDirs: [PROTOS], longs: String, defaults: true, oneofs: true });
const api = grpc.loadPackageDefinition(definition) as any;

// google.rpc's error details: whose error it is, and when to come back.
const details = protobuf.parse(`syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }`).root;

/** A google.rpc detail of an error, if the server has sent one of this kind. */
function detail(error: grpc.ServiceError, kind: string): any {
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!(bytes instanceof Uint8Array)) return undefined;
  const status = details.lookupType("Status").decode(bytes) as any;
  const found = status.details.find((detail: any) => detail.typeUrl === `type.googleapis.com/google.rpc.${kind}`);
  return found && details.lookupType(kind).decode(found.value);
}

/** Codes that say that the same call would fail again, when the server itself says so. */
const FINAL = new Set([
  grpc.status.INVALID_ARGUMENT, grpc.status.NOT_FOUND, grpc.status.PERMISSION_DENIED, grpc.status.UNAUTHENTICATED, grpc.status.UNIMPLEMENTED,
]);

/** Whether it is the server that refuses. A proxy's own page has these codes too, but not leadfold's ErrorInfo. */
function isFinal(error: grpc.ServiceError): boolean {
  return FINAL.has(error.code) && detail(error, "ErrorInfo")?.domain === "leadfold";
}

/** Milliseconds until the server wants to be called again. */
function askedToWait(error: grpc.ServiceError): number {
  const delay = detail(error, "RetryInfo")?.retryDelay;
  return delay ? Number(delay.seconds) * 1000 + delay.nanos / 1e6 : 0;
}

/** Prints what a message tells, and returns the version that is known now. */
function show(event: WatchLeadResponse): string {
  if (event.heartbeat) return event.heartbeat.version;
  if (event.snapshot) { // the present state: whatever was known before is replaced
    const { lead } = event.snapshot;
    console.log(`${lead.version} ${lead.messageCount} messages, ${lead.documentCount} documents`);
    return lead.version;
  }
  for (const { version, change, activity, document, profileField, checklistItem } of event.update!.changes) {
    const told = {
      activity: `${activity?.type} ${activity?.status} ${activity?.summary}`,
      document: `document ${document?.filename}`,
      profileField: `profile ${profileField}`,
      checklistItem: `checklist ${checklistItem?.code} ${checklistItem?.status}`,
    }[change] ?? change;
    console.log(`${version} ${told}`);
  }
  return event.update!.lead.version;
}

const [url, leadId] = process.argv.slice(2);
if (!url || !leadId) {
  console.error("usage: npx tsx watch.ts HOST:PORT LEAD_ID");
  process.exit(2);
}
const [, scheme, address] = /^(https?:\/\/)?(.*)$/.exec(url)!;
const authority = process.env.LEADFOLD_CA_FILE;
const credentials = scheme === "https://" ? grpc.credentials.createSsl(authority ? readFileSync(authority) : null) : grpc.credentials.createInsecure();
const client = new api.leadfold.v1.LeadService(address, credentials, { "grpc.keepalive_time_ms": 30_000 });
const metadata = new grpc.Metadata();
if (process.env.LEADFOLD_TOKEN) metadata.set("authorization", `Bearer ${process.env.LEADFOLD_TOKEN}`);

let afterVersion = "0";
let backoff: number = BACKOFF[0];
for (;;) {
  let wait = 0;
  const stream: grpc.ClientReadableStream<WatchLeadResponse> = client.watchLead({ leadId, afterVersion }, metadata);
  let silence = setTimeout(() => stream.cancel(), SILENCE);
  try {
    for await (const event of stream) {
      silence.refresh();
      afterVersion = show(event);
      backoff = BACKOFF[0];
    }
  } catch (thrown) {
    const error = thrown as grpc.ServiceError;
    if (typeof error.code !== "number") throw thrown; // a fault of this program
    if (isFinal(error)) {
      console.error(`${grpc.status[error.code]}: ${error.details}`);
      process.exit(1);
    }
    console.error(`${grpc.status[error.code]}: ${error.details}; trying again`);
    wait = askedToWait(error);
  } finally {
    clearTimeout(silence);
  }
  await sleep(Math.max(wait, backoff * (0.5 + Math.random() / 2)));
  backoff = Math.min(backoff * 2, BACKOFF[1]);
}
