"""``python -m bench.bare_loop MANIFEST THREADS NICE``: the plain loop of ``bench.train``, for ever.

One line a step: steps so far and this process's processor seconds, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import count
from pathlib import Path

import torch

from bench.train import plain_steps
from protocol.manifest import RunManifest


def main(manifest_path: str, threads: str, nice: str) -> None:
    os.nice(int(nice) - os.nice(0))
    torch.set_num_threads(int(threads))
    manifest = RunManifest.parse(Path(manifest_path).read_bytes())
    shape = (manifest.inner.sequences_per_batch, manifest.sequence_length)
    vocabulary = int(manifest.model_config_json["vocab_size"])
    batches = (torch.randint(0, vocabulary, shape) for _ in count())
    for steps, _ in enumerate(plain_steps(manifest.model_config_json, batches), 1):
        print(json.dumps({"steps": steps, "cpu_s": time.process_time()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
