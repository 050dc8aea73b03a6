"""The join link: read, written, and refused with a sentence that helps."""

from __future__ import annotations

import pytest

from protocol.errors import UsageError
from protocol.identity import Identity
from protocol.link import JoinLink

ROOT = Identity.from_seed(bytes(32)).peer_id
RUN = "ab" * 32


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1", "[2001:db8::1]"])
def test_round_trip(host: str) -> None:
    text = f"barnraise://{host}:7443/{RUN}#root={ROOT}"
    link = JoinLink.parse(text)
    assert str(link) == text
    assert link.address == f"{host}:7443"
    assert link.run_id.hex() == RUN
    assert link.root == ROOT
    assert JoinLink.parse(str(link)) == link


def test_surrounding_space_is_forgiven() -> None:
    assert JoinLink.parse(f"  barnraise://h:1/{RUN}#root={ROOT}\n").host == "h"


@pytest.mark.parametrize(
    ("text", "help_"),
    [
        ("", "not a join link"),
        ("example.org", "expected barnraise://"),
        (f"https://h:1/{RUN}#root={ROOT}", "not a join link"),
        (f"barnraise://h/{RUN}#root={ROOT}", "not a join link"),
        (f"barnraise://h';id;':1/{RUN}#root={ROOT}", "not a join link"),
        (f"barnraise://h:99999/{RUN}#root={ROOT}", "not a join link"),
        (f"barnraise://[::1:7/{RUN}#root={ROOT}", "not a join link"),
        (f"barnraise://h:1/{RUN[:-1]}#root={ROOT}", "64 hex digits"),
        (f"barnraise://h:1/#root={ROOT}", "64 hex digits"),
        (f"barnraise://h:1/{RUN}", "quote it in the shell"),
        (f"barnraise://h:1/{RUN}#root=", "quote it in the shell"),
        (f"barnraise://h:1/{RUN}#root={ROOT}&root={ROOT}", "root=FINGERPRINT"),
        (f"barnraise://h:1/{RUN}#root={ROOT[:-1]}", "damaged"),
    ],
)
def test_bad_links_are_refused(text: str, help_: str) -> None:
    with pytest.raises(UsageError, match=help_):
        JoinLink.parse(text)
