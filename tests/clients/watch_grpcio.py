"""Watches with grpcio until it is killed, and calls again when a stream ends: see README.md."""

import base64
import json
import sys
import time

import grpc

call = json.loads(sys.argv[1])
with grpc.insecure_channel(call["address"]) as channel:
    while True:
        try:
            for message in channel.unary_stream("/" + call["rpc"])(base64.b64decode(call["bytes"])):
                print(json.dumps({"message": base64.b64encode(message).decode()}), flush=True)
            print(json.dumps({"ended": 0}), flush=True)
        except grpc.RpcError as error:
            print(json.dumps({"ended": error.code().value[0]}), flush=True)
        time.sleep(0.2)
