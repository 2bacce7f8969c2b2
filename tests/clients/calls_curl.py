"""Makes calls with curl, which knows nothing of gRPC: see README.md. What it receives is read here, byte by byte.

The first argument is one of grpc (HTTP/2), grpc-web (HTTP/1.1) and grpc-web-h2.
"""

import base64
import gzip
import json
import re
import subprocess
import sys
import tempfile
import urllib.parse

PROTOCOL = sys.argv[1]
# A call without an end would be waited for without end.
MOST_SECONDS = 60


def fields(lines):
    """Header fields by their names in lower case."""
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name.strip().lower(): value.strip() for name, value in pairs}


def frames(data):
    """The frames of a body: flags and bytes."""
    while data:
        assert len(data) >= 5, f"half a frame: {data!r}"
        flags, length = data[0], int.from_bytes(data[1:5], "big")
        assert len(data) >= 5 + length, f"half a frame: {data!r}"
        yield flags, data[5 : 5 + length]
        data = data[5 + length :]


def outcome(call, folder):
    request = base64.b64decode(call["bytes"])
    if call["compress"]:
        request = gzip.compress(request)
    with open(f"{folder}/request", "wb") as file:
        file.write(bytes([call["compress"]]) + len(request).to_bytes(4, "big") + request)
    is_web = PROTOCOL != "grpc"
    headers = {"content-type": "application/grpc-web+proto" if is_web else "application/grpc"}
    if is_web:
        headers["x-grpc-web"] = "1"
    else:
        headers["te"] = "trailers"
    if call["seconds"]:
        headers["grpc-timeout"] = f"{round(call['seconds'] * 1000)}m"
    if call["authorization"]:
        headers["authorization"] = call["authorization"]
    if call["gzip"]:
        headers["grpc-accept-encoding"] = "gzip,identity"
    if call["compress"]:
        headers["grpc-encoding"] = "gzip"
    version = "--http1.1" if PROTOCOL == "grpc-web" else "--http2" if call["ca"] else "--http2-prior-knowledge"
    scheme = "https" if call["ca"] else "http"
    arguments = ["curl", "--silent", "--show-error", "--no-buffer", "--noproxy", "*", version, "--max-time", str(MOST_SECONDS)]
    arguments += ["--cacert", call["ca"]] if call["ca"] else []
    arguments += [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
    arguments += ["-D", f"{folder}/headers", "-o", f"{folder}/body", "--data-binary", f"@{folder}/request"]
    done = subprocess.run(arguments + [f"{scheme}://{call['address']}/{call['rpc']}"], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"code": -1, "message": f"curl exits with {done.returncode}: {done.stderr}", "details": "", "messages": []}

    with open(f"{folder}/headers", encoding="latin-1", newline="") as file:
        blocks = file.read().replace("\r\n", "\n")
    # `100 Continue` is a block of its own; trailers follow the headers, behind an empty line or none.
    received = fields(re.sub(r"^HTTP/\S+ 100.*?\n\n", "", blocks, flags=re.DOTALL).split("\n"))
    status = re.findall(r"^HTTP/\S+ (\d+)", blocks, flags=re.MULTILINE)[-1]
    if status != "200" or not received.get("content-type", "").startswith(headers["content-type"].removesuffix("+proto")):
        return {"code": -2, "message": f"HTTP {status}: {received}", "details": "", "messages": []}
    try:
        with open(f"{folder}/body", "rb") as file:
            body = file.read()
    except FileNotFoundError:
        body = b""
    messages = []
    for flags, content in frames(body):
        if flags & 0x80:
            assert is_web and "grpc-status" not in received, f"a status twice: {received} {content!r}"
            received |= fields(content.decode("latin-1").split("\r\n"))
        else:
            messages.append(base64.b64encode(gzip.decompress(content) if flags & 1 else content).decode())
    if "grpc-status" not in received:
        return {"code": -3, "message": f"no status: {received}", "details": "", "messages": messages}
    details = received.get("grpc-status-details-bin", "")
    message = urllib.parse.unquote(received.get("grpc-message", ""))
    padded = details + "=" * (-len(details) % 4)
    return {"code": int(received["grpc-status"]), "message": message, "details": padded, "messages": messages}


with open(sys.argv[2], encoding="utf-8") as file:
    for asked in json.load(file)["calls"]:
        with tempfile.TemporaryDirectory() as empty:
            print(json.dumps(outcome(asked, empty)), flush=True)
