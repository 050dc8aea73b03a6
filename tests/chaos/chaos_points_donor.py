"""Where a donor's command can be killed: around everything that it writes down for good."""

from __future__ import annotations

from chaos_injector import Install, after, before

from protocol.identity import Identity
from worker.donor import home
from worker.donor.home import DonorHome
from worker.donor.journal import ActJournal

POINTS: dict[str, Install] = {
    "key written": after(Identity, "save"),  # and has not got its name yet
    "folder synced": after(home, "_sync_folder"),  # after each step of a rotation on disk
    "after sign": after(ActJournal, "sign"),
    "answered": before(ActJournal, "recorded"),
    "after recorded": after(ActJournal, "recorded"),
    "before the key is used": before(DonorHome, "use_next_key"),
}
