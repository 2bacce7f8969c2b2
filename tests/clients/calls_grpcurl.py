"""Makes calls with grpcurl: see README.md. The first argument is the program."""

import json
import subprocess
import sys


def objects(text):
    """JSON objects that follow each other."""
    decoder, at, found = json.JSONDecoder(), 0, []
    text = text.strip()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
        while at < len(text) and text[at].isspace():
            at += 1
    return found


def outcome(program, protoset, call):
    arguments = [program, "-protoset", protoset, "-format-error", "-d", json.dumps(call["json"])]
    arguments += ["-cacert", call["ca"]] if call["ca"] else ["-plaintext"]
    if call["seconds"]:
        arguments += ["-max-time", str(call["seconds"])]
    if call["authorization"]:
        arguments += ["-H", "authorization: " + call["authorization"]]
    done = subprocess.run(arguments + [call["address"], call["rpc"]], capture_output=True, text=True, check=False)
    messages = objects(done.stdout)
    if done.returncode == 0:
        return {"code": 0, "message": "", "details": [], "messages": messages}
    # It exits with 64 and the code.
    try:
        error = json.loads(done.stderr)
    except ValueError:
        # The deadline may pass while it connects.
        if call["seconds"] and "context deadline exceeded" in done.stderr:
            return {"code": 4, "message": done.stderr, "details": [], "messages": messages}
        return {"code": done.returncode - 64, "message": done.stderr, "details": [], "messages": messages}
    assert error["code"] == done.returncode - 64, done
    return {"code": error["code"], "message": error.get("message", ""), "details": error.get("details", []), "messages": messages}


with open(sys.argv[2], encoding="utf-8") as file:
    asked = json.load(file)
for each in asked["calls"]:
    print(json.dumps(outcome(sys.argv[1], asked["protoset"], each)), flush=True)
