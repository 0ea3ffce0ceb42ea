"""A server process for tests of signals: python -m tests.server.serve_scripted DRAIN STEP...

DRAIN is in seconds; a step is a token's text, or "|" for a wait that only the end of the server ends. The
first line printed is the port.
"""

from __future__ import annotations

import logging.config
import sys

from server.__main__ import listen_on, run
from server.logs import log_config
from server.settings import Settings
from tests.fakes import Gate, ScriptedModel


def main() -> int:
    """Serve until a signal."""
    drain, steps = float(sys.argv[1]), sys.argv[2:]
    logging.config.dictConfig(log_config("info"))
    with listen_on("127.0.0.1", 0) as listener:
        print(listener.getsockname()[1], flush=True)
        model = ScriptedModel(*(Gate() if step == "|" else step for step in steps))
        return run(Settings(drain_timeout=drain), [model], listener)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
