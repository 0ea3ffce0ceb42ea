"""Which replica: a conversation returns to the one that has seen it, unless that one is too busy.

Ray routes by what its proxies know of a request, which is its headers, never its body. What tells
conversations apart is therefore the session header, which clients send or `deploy/ray_proxy.py` makes.
Refuses to know what a session is.

    request_router_config:
      request_router_class: deploy.ray_routing:ConversationRouter
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

DEFAULT_SLACK = 4


class ConversationRouter(RequestRouter):
    """Rendezvous hashing of sessions, bounded by load; without a session the idler of two at random.

    Keyword `slack`: how many more requests than the idlest replica a session's own replica may have before
    it loses one to the others. One that does not say how many it has loses it too.
    """

    queue_len_response_deadline_s = 1.0
    """Ray's 0.1 is short for a process whose cores are all computing."""

    def initialize_state(self, *, slack: int = DEFAULT_SLACK, **unknown: object) -> None:
        """Called by Ray with request_router_kwargs."""
        if unknown:
            raise TypeError(f"request_router_kwargs: no such keyword: {', '.join(unknown)}")
        self._slack = slack

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas to try in turn; within one Ray takes the shortest queue that is not full."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # or Ray asks again without a pause
        session = pending_request.metadata.session_id
        if not session:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        by_name = {one.replica_id.unique_id: one for one in candidate_replicas}
        first, *others = (by_name[name] for name in ranked(session, list(by_name)))
        length = self._queue_length(first)
        if length - min(map(self._queue_length, others), default=length) > self._slack:
            return [others, [first]]
        return [[first], others]

    def _queue_length(self, replica: RunningReplica) -> int:
        """As this proxy heard in the last 10 s; else 0, so that a quiet conversation stays."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0


def ranked(session: str, names: Sequence[str]) -> list[str]:
    """The same order wherever it is asked; when a name goes, only sessions that had it first move.

    >>> ranked("a", ["x", "y", "z"]) == ranked("a", ["z", "x", "y"])
    True
    """

    def weight(name: str) -> bytes:
        return hashlib.blake2b(f"{session}\0{name}".encode(), digest_size=8).digest()

    return sorted(names, key=weight, reverse=True)
