"""A server that knows nothing but its environment: the container's commands, without one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from worker.config import Home, WorkerConfig

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

CONTAINERFILE = Path(__file__).parents[2] / "deploy" / "Containerfile"


def instruction(name: str) -> list[str]:
    """The last ``NAME [...]`` of the container file, as a list of words."""
    found = re.findall(rf"^{name} (\[.*\])$", CONTAINERFILE.read_text(), re.MULTILINE)
    words: list[str] = json.loads(found[-1])
    return words


def variables(home: Path, **more: str) -> dict[str, str]:
    """What a container has; of this test's own environment only where its programs are."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HOME": str(home.parent),
        "BARNRAISE_HOME": str(home),
        "BARNRAISE_JSON_LOGS": "yes",
        **more,
    }


def healthy(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    check = re.findall(r"^\s+CMD (\[.*\])$", CONTAINERFILE.read_text(), re.MULTILINE)[0]
    return subprocess.run(
        json.loads(check), env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_container_joins_works_and_ends_by_its_environment(
    worker_rig: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with worker_rig.open_rig(tmp_path) as rig:
        rig.init(max_rounds=1000)
        rig.serve().wait_for("Serving")
        home = Home(rig.home("container"))
        environment = variables(
            home.path,
            BARNRAISE_LINK=rig.link,
            BARNRAISE_NAME="from the environment",
            BARNRAISE_DEVICE="cpu",
            BARNRAISE_LISTEN="/ip4/127.0.0.1/tcp/0",
            BARNRAISE_LIMITS_THREADS="1",
            BARNRAISE_LIMITS_NICE="0",
        )
        monkeypatch.setattr(worker_rig, "ENVIRONMENT", environment)
        command = instruction("ENTRYPOINT") + instruction("CMD")
        assert command[0] == "barnraise"
        program, arguments = ("-m", "barnraise"), command[1:]

        unconfirmed = rig.start("container", *arguments, program=program)
        unconfirmed.wait_for('"event": "asleep"')  # nobody has agreed
        assert not WorkerConfig.load(home.config).confirmed
        shown: dict[str, Any] = json.loads(healthy(environment).stdout)
        assert (shown["because"], shown["asleep"]) == ("unconfirmed", True)
        unconfirmed.popen.terminate()
        assert unconfirmed.wait() == 0
        assert healthy(environment).returncode == 3

        environment["BARNRAISE_ACCEPT"] = "yes"
        agreed = rig.start("container", *arguments, program=program)
        agreed.wait_for('"event": "committed"')
        assert healthy(environment).returncode == 0
        config = WorkerConfig.load(home.config)
        assert (config.name, config.limits.threads) == ("from the environment", 1)
        agreed.popen.terminate()
        assert agreed.wait() == 0
        events = [json.loads(line)["event"] for line in agreed.text().splitlines()]
        assert events.count("joined") == 1
