"""All that a tab did and said: what it asked for, what it complained of, what it asked a person."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

LOUD = ("error", "warning", "assert")


@dataclass
class Request:
    """What the tab asked for, and what came of it."""

    method: str
    url: str
    headers: dict[str, str]
    body: str | None
    status: int | None = None
    num_bytes: int = 0
    failure: str | None = None

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def json(self) -> Any:
        return json.loads(self.body or "null")


@dataclass
class Happened:
    """Everything so far, in order.

    Attributes:
        requests: by the browser's own ids, those that it refused to send included.
        complaints: errors and warnings: of scripts, of the console, of the browser itself (what could not be
            loaded, what the page's own policy forbids).
        dialogs: what stopped the page: alerts and questions, which are answered with yes.
    """

    requests: dict[str, Request] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def note(self, method: str, params: dict[str, Any]) -> None:
        """An event of the protocol; others than these say nothing of interest."""
        match method:
            case "Network.requestWillBeSent":
                sent = params["request"]
                request = Request(sent["method"], sent["url"], sent["headers"], sent.get("postData"))
                self.requests[params["requestId"]] = request
            case "Network.responseReceived" if params["requestId"] in self.requests:
                self.requests[params["requestId"]].status = params["response"]["status"]
            case "Network.loadingFinished" if params["requestId"] in self.requests:
                self.requests[params["requestId"]].num_bytes = int(params["encodedDataLength"])
            case "Network.loadingFailed" if params["requestId"] in self.requests:
                why = params.get("blockedReason") or params["errorText"]
                self.requests[params["requestId"]].failure = why
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                thrown = details.get("exception", {}).get("description")
                self.complaints.append(str(thrown or details["text"]))
            case "Runtime.consoleAPICalled" if params["type"] in LOUD:
                words = [str(one.get("value", one.get("description"))) for one in params["args"]]
                self.complaints.append(" ".join(words))
            case "Log.entryAdded" if params["entry"]["level"] in LOUD:
                self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Page.javascriptDialogOpening":
                self.dialogs.append(f"{params['type']}: {params['message']}")

    def asked(self, path: str, method: str = "POST") -> list[Request]:
        """The requests for a path of any server, in order."""
        return [one for one in self.requests.values() if (one.method, one.path) == (method, path)]

    def strangers(self, origin: str) -> list[str]:
        """What was asked of anyone else; data and blobs are the page's own."""
        own = (f"{origin}/", "data:", f"blob:{origin}/", "about:")
        return [one.url for one in self.requests.values() if not one.url.startswith(own)]

    def forgive(self, pattern: str) -> None:
        """Strike complaints that a test has provoked; one that it has not is an error.

        Raises:
            AssertionError: there was none.
        """
        kept = [one for one in self.complaints if not re.search(pattern, one)]
        assert len(kept) < len(self.complaints), f"nothing like {pattern!r} in {self.complaints}"
        self.complaints[:] = kept

    def forget(self, url: str) -> list[Request]:
        """Strike the requests for what begins with this."""
        found = {number: one for number, one in self.requests.items() if one.url.startswith(url)}
        for number in found:
            del self.requests[number]
        return list(found.values())
