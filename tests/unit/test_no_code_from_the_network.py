"""Nothing that comes over the network is ever run: neither by a line of ours, nor by a library."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protocol.errors import UsageError
from protocol.manifest import RunManifest

ROOT = Path(__file__).parents[2]

MODULES = (
    *("pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"),
    *("yaml", "runpy", "code", "codeop", "imp", "ctypes", "cffi", "zipimport"),
)
"""What is never imported: it makes objects or code of bytes."""

BUILTINS = ("eval", "exec", "compile", "__import__")

CALLS = (
    *("importlib.import_module", "importlib.util.spec_from_file_location", "importlib.reload"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
    *("torch.utils.cpp_extension.load", "torch.ops.load_library", "np.load", "numpy.load"),
    *("os.system", "os.popen", "os.execv", "os.execve", "os.execvp", "os.posix_spawn", "os.spawnv"),
    *("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output"),
    *("subprocess.check_call", "subprocess.getoutput"),
    *("asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"),
)

METHODS = (
    "from_pretrained",
    "hf_hub_download",
    "snapshot_download",
    "get_class_from_dynamic_module",
)
"""Whoever's: they go to a hub, or read what came from one."""

ALLOWED = {
    ("protocol/leash.py", "ctypes"): "prctl of the C library: a child ends with its parent",
    ("protocol/leash.py", "os.execvp"): "what our own caller named",
    ("worker/cli.py", "importlib.import_module"): "a command of this program, from a fixed table",
    ("worker/devices.py", "asyncio.create_subprocess_exec"): "this program, for each device",
    ("worker/fleet.py", "asyncio.create_subprocess_exec"): "this program, for each device",
    ("worker/sensors/gpu.py", "importlib.import_module"): "NVIDIA's library, by its fixed name",
    ("worker/sensors/idle.py", "ctypes"): "a framework of macOS, by its fixed path",
    ("worker/heap.py", "ctypes"): "mallopt of the C library, with fixed numbers",
    ("worker/running.py", "os.execv"): "this very program anew, with its own arguments",
    ("worker/service.py", "subprocess.run"): "systemctl and loginctl, with fixed words",
    ("worker/trainer.py", "asyncio.create_subprocess_exec"): "our own trainer, by this interpreter",
}


def sources() -> list[Path]:
    found = [*ROOT.glob("worker/**/*.py"), *ROOT.glob("protocol/**/*.py")]
    assert len(found) > 90
    return found


def name_of(node: ast.expr, known: dict[str, str]) -> str:
    """The dotted name of what is called, with imports followed; empty when it has none."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        left = name_of(node.value, known)
        return f"{left}.{node.attr}" if left else f".{node.attr}"
    return ""


def findings(text: str) -> Iterator[str]:
    """What in a source could run what it reads."""
    tree = ast.parse(text)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                known[item.asname or item.name.partition(".")[0]] = (
                    item.name if item.asname else item.name.partition(".")[0]
                )
                if item.name.partition(".")[0] in MODULES:
                    yield item.name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module is not None
            if node.module.partition(".")[0] in MODULES:
                yield node.module
            for item in node.names:
                known[item.asname or item.name] = f"{node.module}.{item.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in BUILTINS:
                yield node.func.id
        elif isinstance(node, ast.Name | ast.Attribute):
            name = name_of(node, known).replace("numpy.", "np.")
            if name in CALLS:
                yield name
            if name.rpartition(".")[2] in METHODS:
                yield name
        elif isinstance(node, ast.keyword):
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            if node.arg in ("trust_remote_code", "shell", "allow_pickle") and value is not False:
                yield f"{node.arg}="
            if node.arg == "weights_only" and value is not True:
                yield "weights_only="


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import yaml as y",
        "import torch\ntorch.load(path)",
        "from torch import load\nload(path)",
        "import torch as t\nt.load(path)",
        "import numpy as np\nnp.load(path)",
        "from importlib import import_module as f\nf(name)",
        "import importlib\nrun = importlib.import_module",
        "eval(text)",
        "from os import system\nsystem(text)",
        "import subprocess as s\ns.Popen(words)",
        "AutoModel.from_pretrained(name)",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=given)",
        "f(shell=True)",
    ],
)
def test_the_scan_finds_what_it_looks_for(line: str) -> None:
    assert list(findings(line))


def test_no_source_of_the_worker_runs_what_it_reads() -> None:
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in sources()
        for name in findings(path.read_text())
    }
    assert found - set(ALLOWED) == set()


def test_every_process_is_started_with_words_of_our_own() -> None:
    """The first word is this interpreter or a fixed name: nothing from a record gets there."""
    starts = {path for path, name in ALLOWED if "subprocess" in name or "exec" in name}
    for path in starts:
        text = (ROOT / path).read_text()
        assert "sys.executable" in text or '"systemctl"' in text or "sys.argv" in text, path
        assert "shell=True" not in text


# ---- what a manifest may say of a model


@pytest.mark.parametrize(
    "settings",
    [
        {"auto_map": {"AutoModelForCausalLM": "evil/repo--modeling.Model"}},
        {"auto_map": {}},
        {"rope_parameters": {"auto_map": {"AutoConfig": "evil--x.Y"}}},
        {"layers": [{"deep": [{"auto_map": "evil--x.Y"}]}]},
        {"trust_remote_code": True},
        {"trust_remote_code": False},
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel"},
        {"_attn_implementation_internal": "evil/kernel"},
        {"experts_implementation": "evil/kernel"},
        {"use_kernels": True},
        {"kernel_config": {"RMSNorm": "evil/kernel"}},
        {"quantization_config": {"quant_method": "gptq"}},
        {"_name_or_path": "evil/repo"},
        {"__class__": "evil"},
        {"model_type": "evil"},
        {"model_type": "evil/repo"},
        {"model_type": "../../evil"},
        {"model_type": ["llama"]},
        {"model_type": None},
    ],
)
def test_a_manifest_that_could_load_code_is_refused(
    make_manifest: Callable[..., RunManifest], settings: dict[str, Any]
) -> None:
    manifest = make_manifest()
    raw = manifest.model_dump(mode="json")
    raw["model_config_json"] |= settings
    with pytest.raises(UsageError):
        RunManifest.from_mapping(raw)
    RunManifest.from_mapping(manifest.model_dump(mode="json"))  # it is for that alone


# ---- hostile bytes


class Bomb:
    """Its pickle makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._path),)


PARSERS = """
import json, os, sys
from pathlib import Path

folder = Path(sys.argv[1])
bombs = sorted(folder.glob("bomb-*"))
model = json.loads(sys.argv[2])

from hivemind.utils.serializer import MSGPackSerializer
from protocol import snapshot
from protocol.certificate import check_certificate
from protocol.dataset import DatasetManifest
from protocol.envelope import parse_envelope
from protocol.identity import Identity
from protocol.link import JoinLink
from protocol.manifest import RunManifest
from protocol.model import parameter_spec
from protocol.state import read_vector
from protocol.wire import service_pb2
from worker.kept_inputs import open_inputs
from worker.last_uses import LastUses
from worker.partial_blob import PartialBlob

spec = parameter_spec(model)
link = JoinLink("127.0.0.1", 7443, bytes(32), Identity.from_seed(bytes(32)).peer_id)
watched = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen",
           "os.spawn", "os.fork", "ctypes.dlopen", "shutil.unpack_archive")
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event in watched else None)


def notes(path):
    part = folder / "x.part"
    part.write_bytes(path.read_bytes())
    part.with_suffix(".blocks.part").write_bytes(path.read_bytes())
    PartialBlob(part, 1 << 20).open()


def inputs(path):
    (folder / "inputs").mkdir(exist_ok=True)
    for name in ("roster", "inclusion", "0000"):
        (folder / "inputs" / name).write_bytes(path.read_bytes())
    open_inputs(folder / "inputs", bytes(16), "12D3KooW")


parsers = {
    "run manifest": lambda path: RunManifest.parse(path.read_bytes()),
    "dataset manifest": lambda path: DatasetManifest.parse(path.read_bytes()),
    "weights": lambda path: read_vector(path, spec),
    "snapshot": lambda path: snapshot.read(path, "unit") and 0,
    "envelope": lambda path: parse_envelope(path.read_bytes()),
    "hello": lambda path: service_pb2.HelloReply.FromString(path.read_bytes()),
    "event": lambda path: service_pb2.RunEvent.FromString(path.read_bytes()),
    "dht record": lambda path: MSGPackSerializer.loads(path.read_bytes()),
    "join link": lambda path: JoinLink.parse(path.read_bytes().decode("latin-1")),
    "certificate": lambda path: check_certificate(path.read_bytes(), link, 0),
    "download": notes,
    "inputs": inputs,
    "last uses": LastUses,
}
tried = 0
for name, parse in parsers.items():
    for bomb in bombs:
        tried += 1
        try:
            parse(bomb)
        except Exception as error:
            print(name, bomb.name, type(error).__name__)
print("tried", tried, "seen", seen)
"""


@pytest.mark.timeout(180)
def test_bytes_that_would_run_if_they_were_unpickled_do_nothing(
    make_manifest: Callable[..., RunManifest], tmp_path: Path
) -> None:
    fire = tmp_path / "fire"
    bomb = Bomb(fire)
    for number in (0, 2, 5):
        (tmp_path / f"bomb-pickle-{number}").write_bytes(pickle.dumps(bomb, protocol=number))
    torch.save(bomb, tmp_path / "bomb-torch")
    held = io.BytesIO()
    np.save(held, np.array([bomb], dtype=object), allow_pickle=True)
    (tmp_path / "bomb-numpy").write_bytes(held.getvalue())
    (tmp_path / "bomb-json").write_text('{"__reduce__": ["os.mkdir", ["fire"]], "auto_map": {}}')
    (tmp_path / "bomb-yaml").write_text(f"!!python/object/apply:os.mkdir ['{fire}']\n")
    model = json.dumps(make_manifest().model_config_json)
    done = subprocess.run(
        [sys.executable, "-c", PARSERS, str(tmp_path), model],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "tried 91 seen []", done.stdout
    assert not fire.exists()
    pickle.loads((tmp_path / "bomb-pickle-2").read_bytes())
    assert fire.exists()  # they are real
