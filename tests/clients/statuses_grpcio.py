"""Makes calls with grpcio and prints how each ended.

    statuses_grpcio.py '[{"address": …, "path": …, "request": …, "stream": …, "token": …, "seconds": …}, …]'

`request` is the message in base64; `token` and `seconds` (the deadline) may be null. Prints a line of JSON for each call:
its status code as a number, and the trailing metadata `grpc-status-details-bin` in base64.
"""

import base64
import json
import sys

import grpc


def outcome(call):
    """How one call ends. Messages are passed on as bytes, so no generated code is needed."""
    with grpc.insecure_channel(call["address"]) as channel:
        method = (channel.unary_stream if call["stream"] else channel.unary_unary)(call["path"])
        metadata = [("authorization", f"Bearer {call['token']}")] if call["token"] else None
        request = base64.b64decode(call["request"])
        try:
            answer = method(request, timeout=call["seconds"], metadata=metadata)
            for _ in answer if call["stream"] else ():
                pass
            return {"code": 0, "details": ""}
        except grpc.RpcError as error:
            details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
            return {"code": error.code().value[0], "details": base64.b64encode(details).decode(), "text": str(error.details())}


for asked in json.loads(sys.argv[1]):
    print(json.dumps(outcome(asked)), flush=True)
