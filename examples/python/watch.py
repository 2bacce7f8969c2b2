"""Watches a lead, for ever: across restarts of the server, without missing or repeating anything.

    pip install -r requirements.txt
    python watch.py 127.0.0.1:50051 LEAD_ID

An address that begins with https:// is called over TLS. LEADFOLD_CA_FILE names the PEM file of the authority that signed the
server's certificate, unless it is a public one. LEADFOLD_TOKEN holds the bearer token, where the server asks for one.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

# Compiled as they are; a program of your own may rather generate modules with grpc_tools.protoc.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "proto"))
messages, services = grpc.protos_and_services("leadfold/v1/lead_service.proto")

SILENCE = 45  # seconds: a heartbeat comes every 15, so this much silence means trouble
BACKOFF = (0.2, 5.0)  # seconds: the first and the longest wait before the server is tried again


def show(event):
    """Prints what a message tells, and returns the version that is known now."""
    kind = event.WhichOneof("event")
    if kind == "heartbeat":
        return event.heartbeat.version
    if kind == "snapshot":  # the present state: whatever was known before is replaced
        lead = event.snapshot.lead
        print(lead.version, f"{lead.message_count} messages, {lead.document_count} documents", flush=True)
        return lead.version
    for change in event.update.changes:
        what = change.WhichOneof("change")
        told = {
            "activity": f"{change.activity.type} {change.activity.status} {change.activity.summary}",
            "document": f"document {change.document.filename}",
            "profile_field": f"profile {change.profile_field}",
            "checklist_item": f"checklist {change.checklist_item.code} {change.checklist_item.status}",
        }.get(what, what)
        print(change.version, told, flush=True)
    return event.update.lead.version


# Codes that say that the same call would fail again, when the server itself says so.
FINAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}


def detail(error, kind):
    """A google.rpc detail of an error, if the server has sent one of this kind."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # code and details do not agree: not the server's
        return None
    found = kind()
    return next((found for any in (status.details if status else ()) if any.Unpack(found)), None)


def is_final(error):
    """Whether it is the server that refuses. A proxy's own page has these codes too, but not leadfold's ErrorInfo."""
    info = detail(error, error_details_pb2.ErrorInfo)
    return error.code() in FINAL and info is not None and info.domain == "leadfold"


def asked_to_wait(error):
    """Seconds until the server wants to be called again."""
    retry = detail(error, error_details_pb2.RetryInfo)
    return retry.retry_delay.ToTimedelta().total_seconds() if retry else 0


def connect(address):
    options = [("grpc.keepalive_time_ms", 30_000)]
    if not address.startswith("https://"):
        return grpc.aio.insecure_channel(address.removeprefix("http://"), options)
    authority = os.environ.get("LEADFOLD_CA_FILE")
    credentials = grpc.ssl_channel_credentials(Path(authority).read_bytes() if authority else None)
    return grpc.aio.secure_channel(address.removeprefix("https://"), credentials, options)


async def watch(address, lead_id):
    token = os.environ.get("LEADFOLD_TOKEN")
    metadata = [("authorization", f"Bearer {token}")] if token else None
    version, backoff = 0, BACKOFF[0]
    async with connect(address) as channel:
        client = services.LeadServiceStub(channel)
        while True:
            wait = 0
            stream = client.WatchLead(messages.WatchLeadRequest(lead_id=lead_id, after_version=version), metadata=metadata)
            try:
                while (event := await asyncio.wait_for(stream.read(), SILENCE)) is not grpc.aio.EOF:
                    version, backoff = show(event), BACKOFF[0]
            except asyncio.TimeoutError:
                stream.cancel()
                print(f"silent for {SILENCE} s; trying again", file=sys.stderr)
            except grpc.aio.AioRpcError as error:
                if is_final(error):
                    sys.exit(f"{error.code().name}: {error.details()}")
                print(f"{error.code().name}: {error.details()}; trying again", file=sys.stderr)
                wait = asked_to_wait(error)
            await asyncio.sleep(max(wait, backoff * random.uniform(0.5, 1)))
            backoff = min(backoff * 2, BACKOFF[1])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python watch.py HOST:PORT LEAD_ID")
    try:
        asyncio.run(watch(*sys.argv[1:]))
    except KeyboardInterrupt:
        pass
