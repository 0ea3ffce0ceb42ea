"""The adapters on a model's engines: put there while these run, held by requests, gone when nobody needs one.

    load ─► on ─► retired ─► gone        a retired one still serves whoever holds it, and nobody new

Every engine gets a copy, made on a thread of its own and put on its runner's shelf between two steps, so no
step waits for a file. What sequences call an adapter is new each time: nothing that was computed with an
earlier one of its name is found for a later one. Used on the event loop. Refuses to know files and HTTP.

    >>> placed = await shelves.load("pirate", lambda: open_adapter(path, config))
    >>> placed.hold(); ...; placed.let_go()
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from llm.adapt.adapter import Adapter
from llm.config import AdapterRoom
from llm.engine import Engine
from llm.errors import EngineStopped, OutOfMemory, RequestError
from llm.runner.faults import fault_of


@dataclass(slots=True, eq=False)
class PlacedAdapter:
    """One adapter on every engine of a model; or, without a name, none: the base alone.

    Attributes:
        name: what people call it.
        key: what sequences call it.
        digest: of its file.
        num_holders: who needs it to stay.
        is_retired: it serves nobody new.
    """

    name: str = ""
    key: str = ""
    digest: str = ""
    num_holders: int = 0
    is_retired: bool = False
    _gone: Callable[[], None] = field(default=lambda: None, repr=False)

    def hold(self) -> None:
        """Keep it until `let_go`.

        Raises:
            EngineStopped: it has gone already.
        """
        if self.is_retired and not self.num_holders:
            raise EngineStopped(f"the adapter {self.name} is no longer loaded")
        self.num_holders += 1

    def let_go(self) -> None:
        """One holder less; the last one of a retired adapter sees it off."""
        self.num_holders -= 1
        assert self.num_holders >= 0, self.name
        self._leave_if_unused()

    def retire(self, gone: Callable[[], None]) -> None:
        """Serve nobody new; `gone` is called when nobody holds it any more."""
        assert not self.is_retired, self.name
        self.is_retired, self._gone = True, gone
        self._leave_if_unused()

    def _leave_if_unused(self) -> None:
        if self.is_retired and not self.num_holders:
            self._gone()


class Shelves:
    """The shelves of a model's runners, which all hold the same adapters.

    Args:
        engines: a copy goes to each.
        room: how many adapters there may be, of which rank.

    Attributes:
        on: those that serve, by name.
    """

    def __init__(self, engines: Sequence[Engine], room: AdapterRoom) -> None:
        self.on: dict[str, PlacedAdapter] = {}
        self.room = room
        self._engines = engines
        self._coming: set[str] = set()
        self._num_leaving = 0
        self._numbers = itertools.count(1)
        self._turn = asyncio.Lock()  # one is read at a time: memory for one more, one thread busy with it

    def place(self, name: str, adapter: Adapter) -> PlacedAdapter:
        """Put an adapter on every shelf before the engines run.

        Raises:
            RequestError: as `load`.
        """
        self._check(name)
        placed = self._named(name, adapter)
        for engine in self._engines:
            engine.runner.shelf.prepare(placed.key, adapter)()
        self.on[name] = placed
        return placed

    async def load(self, name: str, read: Callable[[], Adapter]) -> PlacedAdapter:
        """Put an adapter on every shelf while the engines run.

        Args:
            read: where it comes from; called on a thread.

        Raises:
            RequestError: there is one of that name, or no place for another.
            EngineStopped: an engine takes no more work.
            OutOfMemory: there is no memory for it.
            CauserieError: what `read` raised.
        """
        self._check(name)
        self._coming.add(name)
        try:
            async with self._turn:
                adapter = await asyncio.to_thread(read)
                self.on[name] = await self._put(self._named(name, adapter), adapter)
        finally:
            self._coming.remove(name)
        return self.on[name]

    def retire(self, name: str) -> None:
        """Take an adapter off: at once for those who come, and for good when nobody holds it any more."""
        placed = self.on.pop(name)
        self._num_leaving += 1

        def gone() -> None:
            self._num_leaving -= 1
            self._remove(placed.key)

        placed.retire(gone)

    def _check(self, name: str) -> None:
        if name in self.on or name in self._coming:
            raise RequestError(f"lora_name {name!r} is loaded already: unload it first", param="lora_name")
        num_taken = len(self.on) + len(self._coming) + self._num_leaving
        if num_taken >= self.room.num_adapters:
            message = f"lora_name {name!r}: all {self.room.num_adapters} places (--max-loras) are taken"
            leaving = f"; {self._num_leaving} are free when running requests end" if self._num_leaving else ""
            raise RequestError(message + leaving, param="lora_name")

    def _named(self, name: str, adapter: Adapter) -> PlacedAdapter:
        return PlacedAdapter(name, f"{name}#{next(self._numbers)}", adapter.digest)

    async def _put(self, placed: PlacedAdapter, adapter: Adapter) -> PlacedAdapter:
        shelves = [engine.runner.shelf for engine in self._engines]
        try:
            puts = await asyncio.to_thread(lambda: [one.prepare(placed.key, adapter) for one in shelves])
            for engine, put in zip(self._engines, puts, strict=True):
                await asyncio.wrap_future(engine.call(put))
        except BaseException as error:
            self._remove(placed.key)
            if fault_of(error) is OutOfMemory:
                raise OutOfMemory(f"there is no memory for the adapter {placed.name}") from error
            raise
        return placed

    def _remove(self, key: str) -> None:
        """From every shelf, after all that was submitted before."""
        for engine in self._engines:
            with suppress(EngineStopped):  # then it goes with the engine
                engine.call(partial(engine.runner.shelf.remove, key))
