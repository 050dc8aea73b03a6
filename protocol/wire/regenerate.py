"""Generate the stubs from the ``.proto`` files, or check that they are up to date.

python -m protocol.wire.regenerate [--check]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

_WIRE = Path(__file__).parent
_ROOT = _WIRE.parent.parent
_STUBS = (
    "records_pb2.py",
    "records_pb2.pyi",
    "service_pb2.py",
    "service_pb2.pyi",
    "service_pb2_grpc.py",
)


def generate(target: Path) -> None:
    """Run protoc for both files, writing ``protocol/wire/*_pb2*`` below ``target``."""
    from grpc_tools import protoc

    sources = [f"protocol/wire/{name}.proto" for name in ("records", "service")]
    arguments = ["protoc", f"-I{_ROOT}", f"--python_out={target}", f"--pyi_out={target}"]
    arguments.append(f"--grpc_python_out={target}")
    if protoc.main([*arguments, *sources]) != 0:
        raise SystemExit("protoc refused the .proto files (see above)")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {name: (Path(folder) / "protocol/wire" / name).read_bytes() for name in _STUBS}
    if "--check" not in sys.argv[1:]:
        for name, content in fresh.items():
            (_WIRE / name).write_bytes(content)
        return
    stale = [name for name in _STUBS if (_WIRE / name).read_bytes() != fresh[name]]
    if stale:
        raise SystemExit(f"stale stubs: {', '.join(stale)}; run: make proto")


if __name__ == "__main__":
    main()
