"""Builds a dataset in a process of its own, which a test may kill, limit or measure.

Usage: data_build_driver.py ARGUMENTS.json, an object with:
    out, text, tokenizer, and any other option of BuildOptions;
    kill: [phase, count]: SIGKILL this process at that progress report of the phase;
    file_limit_bytes: no file may grow beyond it, as on a full disk.
Prints one JSON line: the digest and how much the process grew, in KiB.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

# What a build imports as it goes counts as the program, not as its data.
import numpy.random
import tokenizers

from coordinator.data.build import build_dataset
from coordinator.data.options import BuildOptions, Input, Progress
from protocol.errors import UsageError


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    kill = given.pop("kill", None)
    limit = given.pop("file_limit_bytes", None)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    options = BuildOptions(
        out=Path(given.pop("out")), inputs=(Input("text", given.pop("text")),), **given
    )
    seen = 0

    def on_progress(progress: Progress) -> None:
        nonlocal seen
        if kill and progress.phase == kill[0]:
            seen += 1
            if seen == kill[1]:
                os.kill(os.getpid(), signal.SIGKILL)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        manifest = build_dataset(options, on_progress)
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"digest": manifest.digest.hex(), "growth_kib": growth}))


if __name__ == "__main__":
    assert numpy.random and tokenizers
    main()
