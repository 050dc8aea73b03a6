"""A worker or an auditor that cheats: the real command with one of its seams replaced.

``faulty_worker.py --fault NAME [--after N] [--share P] [--victim ID] [--folder DIR] -- COMMAND``

What follows ``--`` is an ordinary ``barnraise`` command. Each cheat is a log line ``cheated``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from faults import Fault, When
from plan import Plan
from seams import install

from barnraise import main as barnraise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", type=Fault, required=True, choices=list(Fault))
    parser.add_argument("--after", type=int, default=0, help="honest units first")
    parser.add_argument("--share", type=float, default=1.0, help="of the units after that")
    parser.add_argument("--victim", default="", help="PeerID of whom it goes against")
    parser.add_argument("--folder", type=Path, help="what it got from elsewhere lies here")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    install(Plan(given.fault, When(given.after, given.share), given.victim, given.folder))
    sys.argv = ["barnraise", *given.command]
    barnraise()


if __name__ == "__main__":
    main()
