"""What people do besides training, in the records that the pages are tested on."""

from __future__ import annotations

import hashlib
from typing import Any

from protocol.wire import records_pb2 as wire

HOSTILE_TEXT = "<script>document.title='owned'</script>\"><img src=x onerror=alert(1)>{{ 7 * 7 }}"
TEAM = hashlib.sha256(b"id owls").hexdigest()[:32]
"""The one that :func:`give_and_join` founds."""


def act_in_every_way(crowd: Any, crowd_history: Any) -> dict[str, int]:
    """An act of every kind, with hostile texts where there are texts; leaf indexes by name."""
    history = crowd.history
    for name in ("cyd", "dee"):
        history.enrol(name)
    where = {"campaign": crowd_history.name_id("hostile")}
    appointed = crowd.delegation(
        crowd_history.identity("cashier"), wire.KEY_PURPOSE_TREASURER, serial=4
    )
    made = {
        "delegation": crowd.delegated(appointed),
        "campaign": crowd.campaign(
            "hostile",
            title=HOSTILE_TEXT,
            purpose=HOSTILE_TEXT,
            goal_minor=5000,
            currency="EUR",
            when_missed="close",
            organisers=[HOSTILE_TEXT[:39]],
        ),
        "news": crowd.news(HOSTILE_TEXT, where["campaign"], HOSTILE_TEXT),
        "pledge": crowd.pledge("p", "ada", microcredits=500, **where),
        "private pledge": crowd.pledge("q", "dee", visibility="private", **where),
        "pool": crowd.pool("pool", **where),
        "donation": crowd.donate("d", "ada", "pool", **where),
        "secret donation": crowd.donate("e", "", "pool", visibility="secret", **where),
        "team": crowd.team("t", "ada"),
        "membership": crowd.join("dee", "t"),
        "key_rotation": crowd.rotate("dee", "dee-new"),
        "merge": crowd.merge("cyd", "ada"),
    }
    made["void"] = crowd.void(made["donation"])
    made["campaign_end"] = crowd.end("hostile")
    return made


def give_and_join(crowd: Any, crowd_history: Any) -> None:
    """A team, a pool, pledges and donations of every visibility; only the leaves of them."""
    treasurer = crowd_history.TREASURER
    until_s = crowd.history.now_s + 9_999_999
    gifts = (("cleo", 200, "public"), ("", 100, "private"), ("", 100, "secret"))
    crowd.write_all(
        [
            (crowd.founding("owls", "ada"), "ada"),
            (crowd.membership("ada", "owls"), "ada"),
            (crowd.membership("cleo", "owls"), "cleo"),
            (crowd.pooled("pool"), treasurer),
            *(
                (
                    crowd.gift(shown, donor, "pool", amount_minor=amount_minor, visibility=shown),
                    treasurer,
                )
                for donor, amount_minor, shown in gifts
            ),
            *(
                (
                    crowd.pledged(
                        shown, "cleo", microcredits=5000, until_s=until_s, visibility=shown
                    ),
                    "cleo",
                )
                for shown in ("public", "private", "secret")
            ),
        ]
    )
