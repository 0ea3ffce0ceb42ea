"""Asks a server one chat question with the standard library alone, and tells as JSON lines what came back.

Streamed, the first line is printed when the first piece of text has come and the second at the end, so that
whoever started this knows that a reply is on its way. Refuses to judge the answer.

    $ python3 deploy/docker/ask.py http://127.0.0.1:8000 '{"stream": true, "temperature": 0}'
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

QUESTION = {"model": "default", "messages": [{"role": "user", "content": "what is a token?"}]}
SECONDS = 120.0


def main(url: str, fields: str = "{}") -> int:
    """Ask, with these fields over the question's own; exit status 0 when a whole answer came."""
    body = QUESTION | json.loads(fields)
    begun = time.monotonic()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=SECONDS)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), _headers())
    response = connection.getresponse()
    told: dict[str, Any] = {"status": response.status}
    if body.get("stream") and response.status == 200:
        told |= _streamed(response, begun)
    else:
        answer = json.loads(response.read())
        told |= {"model": answer.get("model"), "error": answer.get("error")}
        for choice in answer.get("choices", ()):
            told |= {"text": choice["message"]["content"], "finish": choice["finish_reason"]}
    told["seconds"] = round(time.monotonic() - begun, 3)
    print(json.dumps(told), flush=True)
    return 0 if told.get("finish") else 1


def _streamed(response: http.client.HTTPResponse, begun: float) -> dict[str, Any]:
    """Read a stream to its end; the first text is told at once."""
    text, finish, chunks, done = "", None, 0, False
    for data in _events(response):
        if data == "[DONE]":
            done = True
            break
        for choice in json.loads(data).get("choices", ()):
            piece = choice["delta"].get("content") or ""
            if piece and not text:
                print(json.dumps({"first": round(time.monotonic() - begun, 3)}), flush=True)
            text, finish, chunks = text + piece, choice["finish_reason"] or finish, chunks + bool(piece)
    return {"text": text, "finish": finish, "chunks": chunks, "done": done}


def _events(response: http.client.HTTPResponse) -> Iterator[str]:
    for line in response:
        if line.startswith(b"data: "):
            yield line[6:].decode().strip()


def _headers() -> dict[str, str]:
    key = os.environ.get("CAUSERIE_API_KEY")
    return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
