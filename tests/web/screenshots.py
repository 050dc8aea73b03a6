"""Takes the README's pictures of the site: ``python tests/web/screenshots.py docs/screenshots``.

The record that they show is written here, leaf by leaf, as a coordinator would; nothing in it was
trained. The same source gives the same record.
"""

from __future__ import annotations

import importlib.util
import random
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import uvicorn
from playwright.sync_api import sync_playwright

_TESTS = Path(__file__).parents[1]
_NAMES = ("Ada", "Bob", "Carol", "Dave", "Erin", "Frank", "Grace", "Heidi", "Ivan", "", "")
_ROUNDS = 48
_MOST_BYTES = 150_000
_SHOTS = (
    ("campaign", "/", 1040, 960, "light"),
    ("charts", "/charts#chart-compute", 1040, 960, "dark"),
    ("phone", "/donors", 390, 780, "light"),
)


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, _TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _manifest() -> Any:
    from protocol.manifest import RunManifest

    given = _load("conftest")
    raw = given.manifest_mapping()
    raw["name"] = "example"
    raw["model_config_json"] = {
        **given.TINY_LLAMA,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
    }
    raw["campaign"] = {
        "title": "A small model for everybody",
        "purpose": "An open language model, trained by whoever lends a computer.",
        "goal_microcredits": 90_000,
    }
    return RunManifest.from_mapping(raw)


def _write(url: str) -> None:
    """A run of some days: donors come, rounds settle, most of the work is verified."""
    chance = random.Random(7)
    history = _load("ledger_history").History(_manifest(), url)
    history.open()
    numbers = [
        history.enrol(f"donor {n}", display_name=name, device=chance.choice(["cpu", "cuda"]))
        for n, name in enumerate(_NAMES)
    ]
    eager = [1 + chance.random() * 9 for _ in numbers]
    for number in range(_ROUNDS):
        history.now_s += chance.choice([3_600, 14_400, 43_200])
        if number in (9, 27):
            history.skip()
            continue
        there = [n for n in numbers if n * 3 < number + 6 and chance.random() < 0.8] or numbers[:1]
        steps = {n: 1 + round(eager[n] * (0.5 + chance.random())) for n in there}
        history.settle(steps, loss_nats=3.2 + 5.6 * 0.93**number + chance.random() * 0.05)
        if number == 30:
            history.release()
    settled = [n for n in range(_ROUNDS) if n not in (9, 27)]
    drawn = [n for n in settled if n < 30]
    for number in drawn:
        history.publish_draw(number)
        for worker in numbers:
            if history.credits_of(worker, number, "training"):
                history.judge(number, worker)
    history.now_s += 8 * 86_400
    for worker in numbers:
        mine = [c for c in history.credits_of(worker) if history.credit_leaf(c).round in drawn]
        if mine:
            history.finish(worker, mine)
    history.settle(dict.fromkeys(numbers, 4), loss_nats=3.34)
    history.close()


@contextmanager
def _served(url: str) -> Iterator[str]:
    from ledger.leaderboard.app import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(url), log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def main(folder: Path) -> None:
    """Write the pictures."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("there is no Chromium here: apt-get install chromium")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        url = f"sqlite:///{scratch}/ledger.db"
        _write(url)
        with _served(url) as site, sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
            )
            for name, path, width, height, scheme in _SHOTS:
                page = browser.new_page(
                    viewport={"width": width, "height": height}, color_scheme=scheme
                )
                page.goto(site + path)
                page.wait_for_load_state("networkidle")
                if "#" in path:  # what was drawn meanwhile has moved it
                    page.locator(path[path.index("#") :]).evaluate("e => e.scrollIntoView()")
                    page.wait_for_load_state("networkidle")
                    page.locator(f"{path[path.index('#') :]} .plot canvas").wait_for()
                target = folder / f"{name}.png"
                page.screenshot(path=target)
                page.close()
                size = target.stat().st_size
                if size > _MOST_BYTES:
                    sys.exit(f"{target} has {size:,} bytes; at most {_MOST_BYTES:,} are wanted")
                print(f"{target}: {size:,} bytes")
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/screenshots"))
