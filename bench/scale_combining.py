"""What a reducer computes for each element of each input, in processor seconds.

The rounds of :mod:`bench.scale` cannot tell it from what every member does with the mean, where all
of them reduce alike. So it is timed by itself, by the same calls as
:meth:`worker.reducer.Reducer._combine_one`, in a process with one thread as the measured members
are: ``python -m bench.scale_combining int4 131072``. With more, numpy's products of two vectors
wait for each other on a busy machine, several times as long as they work.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import numpy as np

from protocol.codec import decode_chunk, encode_chunk
from protocol.combine import combine_chunk
from protocol.manifest import Codec
from worker.screening import measure

INPUTS, TURNS = 32, 9


def combining_s(codec: Codec, elements: int) -> float:
    """Seconds for an element of one input: decoded, weighed, added, screened."""
    command = [sys.executable, "-m", "bench.scale_combining", codec, str(elements)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _time_here_s(codec: Codec, elements: int) -> float:
    dice = np.random.default_rng(0)
    values = dice.standard_normal(elements).astype(np.float32)
    encoded = [encode_chunk(codec, values, dice.bytes(16)) for _ in range(INPUTS)]
    taken_s = []
    for _ in range(TURNS):
        started_s = time.thread_time()
        inputs = [decode_chunk(codec, data, elements) for data in encoded]
        mean = combine_chunk("mean", inputs, [1] * INPUTS)
        measure(inputs, mean)
        encode_chunk(codec, mean, bytes(16))
        taken_s.append(time.thread_time() - started_s)
    return statistics.median(taken_s) / (INPUTS * elements)


if __name__ == "__main__":
    print(_time_here_s(sys.argv[1], int(sys.argv[2])))  # type: ignore[arg-type]
