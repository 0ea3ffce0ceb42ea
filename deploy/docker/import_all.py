"""Imports every module of the given packages, and fails with the first that cannot be.

While an image is built: what was taken from its environment and is still wanted shows here, and not at the
first request that wants it. Refuses to know the packages.

    $ python3 deploy/docker/import_all.py llm server
"""

from __future__ import annotations

import importlib
import pkgutil
import sys


def main(names: list[str]) -> int:
    """Import them; the traceback of a failure is the message."""
    count = 0
    for name in names:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(module.name)
            count += 1
    print(f"{count} modules of {', '.join(names)} are importable")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
