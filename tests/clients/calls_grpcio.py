"""Makes calls with grpcio: see README.md."""

import base64
import json
import sys

import grpc

# Bits of the algorithms that a client accepts: none, deflate, gzip.
ONLY_IDENTITY = 0b001
ALL_ENCODINGS = 0b111


def channel(call):
    options = [("grpc.compression_enabled_algorithms_bitset", ALL_ENCODINGS if call["gzip"] or call["compress"] else ONLY_IDENTITY)]
    if not call["ca"]:
        return grpc.insecure_channel(call["address"], options)
    with open(call["ca"], "rb") as file:
        return grpc.secure_channel(call["address"], grpc.ssl_channel_credentials(file.read()), options)


def outcome(call):
    """How one call ends. Messages are passed on as bytes, so no generated code is needed."""
    messages = []
    with channel(call) as connection:
        method = (connection.unary_stream if call["stream"] else connection.unary_unary)("/" + call["rpc"])
        metadata = [("authorization", call["authorization"])] if call["authorization"] else None
        compression = grpc.Compression.Gzip if call["compress"] else None
        request = base64.b64decode(call["bytes"])
        try:
            answer = method(request, timeout=call["seconds"], metadata=metadata, compression=compression)
            for message in answer if call["stream"] else [answer]:
                messages.append(base64.b64encode(message).decode())
                if len(messages) == call["cancelAfter"]:
                    answer.cancel()
            return {"code": 0, "message": "", "details": "", "messages": messages}
        except grpc.RpcError as error:
            details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
            details = base64.b64encode(details).decode()
            return {"code": error.code().value[0], "message": str(error.details()), "details": details, "messages": messages}


with open(sys.argv[1], encoding="utf-8") as file:
    for asked in json.load(file)["calls"]:
        print(json.dumps(outcome(asked)), flush=True)
