"""leadfold seen from Python: everything it knows of the service comes from reflection.

    grpcio_client.py list|get|watch ADDRESS LEAD_ID

Prints JSON, one line a message. `watch` ends after the second message: the snapshot and one tick.
"""

import json
import sys

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE = "leadfold.v1.LeadService"
SECONDS = 30


def call(channel, pool, name, **fields):
    """Calls a method by its name, unary or streaming as its descriptor says."""
    method = pool.FindServiceByName(SERVICE).methods_by_name[name]
    request = message_factory.GetMessageClass(method.input_type)
    response = message_factory.GetMessageClass(method.output_type)
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    stub = kind(f"/{SERVICE}/{name}", request_serializer=request.SerializeToString, response_deserializer=response.FromString)
    return stub(request(**fields), timeout=SECONDS)


def show(message):
    """One message on one line, at once: somebody is waiting for it."""
    print(json_format.MessageToJson(message, indent=None), flush=True)


def main(command, address, lead_id):
    with grpc.insecure_channel(address) as channel:
        reflection = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(reflection)
        if command == "list":
            print(json.dumps(list(reflection.get_services())))
        elif command == "get":
            show(call(channel, pool, "GetLead", lead_id=lead_id))
        elif command == "watch":
            stream = call(channel, pool, "WatchLead", lead_id=lead_id)
            for _ in range(2):
                show(next(stream))
            stream.cancel()
        else:
            sys.exit(f"what is {command!r}?")


if __name__ == "__main__":
    main(*sys.argv[1:])
