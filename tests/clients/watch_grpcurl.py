"""Watches with grpcurl until it is killed, and starts it again when it ends: see README.md. The first argument is the program."""

import json
import signal
import subprocess
import sys
import time

program, call = sys.argv[1], json.loads(sys.argv[2])
child = None


def stop(*_):
    if child:
        child.kill()
    sys.exit(0)


signal.signal(signal.SIGTERM, stop)
while True:
    arguments = [program, "-plaintext", "-protoset", call["protoset"], "-d", json.dumps(call["json"]), call["address"], call["rpc"]]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    text = ""
    for line in child.stdout:
        text += line
        # A message ends with the line that makes it complete.
        if line.startswith("}"):
            print(json.dumps({"message": json.loads(text)}), flush=True)
            text = ""
    print(json.dumps({"ended": child.wait() - 64}), flush=True)
    time.sleep(0.2)
