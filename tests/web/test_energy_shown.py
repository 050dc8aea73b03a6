"""A donor's page shows energy as what devices say of themselves, and of that donor's alone."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from sqlalchemy.orm import Session
from starlette.testclient import TestClient
from web_page import Page

from ledger.schema import DeviceEnergy


def test_energy_is_shown_as_the_devices_own_word(
    history: Any, client: TestClient, ledger_history: ModuleType
) -> None:
    ada, bob = (ledger_history.identity(name).peer_id for name in ("ada", "bob"))
    page = client.get(f"/api/v1/donors/{ada}").json()
    assert page["energy"] is None
    assert "Energy" not in Page(client.get(f"/donor/{ada}").text).words
    stranger = ledger_history.identity("stranger").peer_id
    with Session(history.engine) as session, session.begin():
        for worker, donor in ((ada, ada), (bob, ada), (stranger, ada)):
            session.add(
                DeviceEnergy(
                    worker=worker, donor=donor, milliwatt_hours=2500, tokens=100_000, told_at_s=1
                )
            )
    page = client.get(f"/api/v1/donors/{ada}").json()
    # A device of another donor, or one that the record does not know, is not this donor's.
    assert page["energy"] == {"milliwatt_hours": 2500, "tokens": 100_000, "devices": 1}
    assert client.get(f"/api/v1/donors/{bob}").json()["energy"] is None
    words = " ".join(Page(client.get(f"/donor/{ada}").text).words.split())
    assert "Energy: 2.50 Wh, 25.00 Wh per million verified tokens" in words
    assert "1 device of this donor says. Nobody verifies that." in words
