"""Bounds of the texts in acts, which strangers write and pages show.

A text is refused, never mended, for it is signed: longer than its bound, with control characters or
direction overrides (line breaks and tabs are welcome in long ones), or blank where one is needed.
Escaping is the business of whoever shows it.
"""

from __future__ import annotations

import unicodedata
from typing import Any
from urllib.parse import urlsplit

from google.protobuf.message import Message

from protocol.errors import BadRecord

MAX_TITLE_CHARS = 120
MAX_PURPOSE_CHARS = 2000
MAX_NEWS_CHARS = 5000
MAX_ORGANISERS = 20
MAX_ORGANISER_CHARS = 64
MAX_DEVICE_CHARS = 64
MAX_REFERENCE_CHARS = 128
MAX_NAME_CHARS = 256  # before it is cleaned (ledger.donors.clean_name)
MAX_URL_CHARS = 256
MAX_ABOUT_CHARS = 512

_BOUNDS: dict[str, dict[str, int]] = {
    "CampaignTerms": {
        "title": MAX_TITLE_CHARS,
        "purpose": MAX_PURPOSE_CHARS,
        "organisers": MAX_ORGANISER_CHARS,
        "reference_device": MAX_DEVICE_CHARS,
    },
    "CampaignNews": {"title": MAX_TITLE_CHARS, "text": MAX_NEWS_CHARS},
    "Donation": {"reference": MAX_REFERENCE_CHARS},
    "ProfileUpdate": {
        "display_name": MAX_NAME_CHARS,
        "url": MAX_URL_CHARS,
        "about": MAX_ABOUT_CHARS,
    },
}
_NEEDED = {"CampaignTerms": ("title",), "CampaignNews": ("title",), "Donation": ("reference",)}
_LONG = ("purpose", "text", "about")
_CLEANED = ("display_name",)  # later, by ledger.donors.clean_name
_REFUSED = {"Cc", "Cs", "Zl", "Zp"}
_OVERRIDES = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def check_texts(record: Message) -> None:
    """Insist that every text of an act is within its bounds.

    Raises:
        BadRecord: naming the field.
    """
    fields: Any = record
    kind = record.DESCRIPTOR.name
    for name, most in _BOUNDS.get(kind, {}).items():
        value = getattr(fields, name)
        for text in [value] if isinstance(value, str) else value:
            _check(name, text, most)
    for name in _NEEDED.get(kind, ()):
        if not getattr(fields, name).strip():
            raise BadRecord(f"a {kind} has no {name}")
    if kind == "CampaignTerms" and len(fields.organisers) > MAX_ORGANISERS:
        raise BadRecord(f"{len(fields.organisers)} organisers are over {MAX_ORGANISERS}")
    if kind == "ProfileUpdate" and fields.url:
        _check_url(fields.url)


def _check(name: str, text: str, most: int) -> None:
    if len(text) > most:
        raise BadRecord(f"{name} has {len(text)} characters; at most {most} are allowed")
    if name in _CLEANED:
        return
    welcome = "\n\t" if name in _LONG else ""
    for character in text:
        refused = unicodedata.category(character) in _REFUSED or character in _OVERRIDES
        if refused and character not in welcome:
            raise BadRecord(f"{name} holds a control character (U+{ord(character):04X})")


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        fine = False
    if not fine or any(character.isspace() for character in url):
        raise BadRecord("url is no web address: it begins with https:// or http://")
