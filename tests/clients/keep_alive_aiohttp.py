"""Posts good and bad bodies over one pool of kept connections, and prints what became of the good ones as JSON.

Usage: keep_alive_aiohttp.py URL SECRET GOOD_BYTES BAD_BYTES COUNT
"""

import asyncio
import json
import sys
import uuid

import aiohttp

url, secret, good_bytes, bad_bytes, count = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
JSON = {"content-type": "application/json"}


def event(size):
    event = {
        "event": "action_log.completed",
        "workspaceId": "keep-alive",
        "actionLog": {"id": str(uuid.uuid4()), "type": "SYSTEM_NOTE", "status": "COMPLETED", "leadId": str(uuid.uuid4())},
        "padding": "",
    }
    event["padding"] = "x" * (size - len(json.dumps(event)))
    return json.dumps(event).encode()


async def main():
    told = {"taken": 0, "lost": [], "refused": {}}
    left = iter(range(count))
    over = asyncio.Event()
    connector = aiohttp.TCPConnector(limit=4)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def good():
            for _ in left:
                try:
                    async with session.post(url, data=event(good_bytes), headers={**JSON, "x-webhook-secret": secret}) as answer:
                        text = await answer.text()
                        if answer.status == 200:
                            told["taken"] += 1
                        else:
                            told["lost"].append(f"{answer.status} {text:.200}")
                except Exception as error:
                    told["lost"].append(repr(error))

        async def bad():
            known = {**JSON, "x-webhook-secret": secret}
            kinds = [
                ("POST", url, JSON),
                ("POST", url + "/a/b", known),
                ("PUT", url, known),
                ("POST", url, {**known, "content-type": "text/plain"}),
            ]
            body = event(bad_bytes)
            at = 0
            while not over.is_set():
                method, path, headers = kinds[at % len(kinds)]
                at += 1
                try:
                    async with session.request(method, path, data=body, headers=headers) as answer:
                        await answer.read()
                        status = str(answer.status)
                except Exception as error:
                    status = repr(error)
                told["refused"][status] = told["refused"].get(status, 0) + 1

        senders = [asyncio.create_task(bad()) for _ in range(2)]
        await asyncio.gather(good(), good())
        over.set()
        await asyncio.gather(*senders)
    print(json.dumps(told))


asyncio.run(main())
