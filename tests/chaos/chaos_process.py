"""A real ``barnraise`` command in which something goes wrong at one exact point.

``chaos_process.py --points MODULE --fault JSON [--fault JSON ...] -- COMMAND``

``MODULE`` is a ``chaos_points_*`` module of this folder, with the table ``POINTS``. A fault is, for
example, ``{"point": "reducer.keep", "do": "kill", "where": {"round": 1, "chunk": 3}}``.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from chaos_injector import Fault, install

from barnraise import main as barnraise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", required=True)
    parser.add_argument("--fault", type=Fault.parse, action="append", required=True)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    install(given.fault, importlib.import_module(given.points).POINTS)
    sys.argv = ["barnraise", *given.command]
    barnraise()


if __name__ == "__main__":
    main()
