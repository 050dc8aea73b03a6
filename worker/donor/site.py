"""What the run's public site says, read over HTTP in bounded answers.

Nothing that counts is believed on the site's word: a campaign's terms come as the act that the
campaign key signed, and that key is one that the run's root key delegated.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from protocol.errors import NotFound, TransientError, UsageError

MAX_ANSWER_BYTES = 4 << 20
_TIMEOUT_S = 20.0
_MOST_S = 300.0  # for a whole answer


def fetch(site: str, path: str, *, most_bytes: int = MAX_ANSWER_BYTES) -> bytes:
    """One page of the site; blocking.

    Raises:
        NotFound: it has no such page.
        UsageError: the run has no public site, or its answer is out of bounds.
        TransientError: it does not answer.
    """
    if not site:
        raise UsageError("this run has no public site: ask its organiser")
    if urlsplit(site).scheme not in ("http", "https"):
        raise UsageError(f"the run's public site {site[:80]!r} is not on the web")
    request = urllib.request.Request(f"{site.rstrip('/')}/{path}")  # noqa: S310  checked above
    try:
        with _OPENER.open(request, timeout=_TIMEOUT_S) as answer:
            data = _read(answer, most_bytes + 1)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.NOT_FOUND:
                raise NotFound(f"{site} has no {path}") from error
            raise TransientError(f"{site} answers {error.code}: try again later") from error
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(
            f"the public site {site} does not answer ({error}): try again later"
        ) from error
    if len(data) > most_bytes:
        raise UsageError(f"{site}/{path} is larger than {most_bytes} bytes: that is not right")
    return data


def _read(answer: Any, most_bytes: int) -> bytes:
    """In time: a site that sends a byte now and then would keep us for ever."""
    ends_s = time.monotonic() + _MOST_S
    data = bytearray()
    while len(data) < most_bytes and (block := answer.read1(most_bytes - len(data))):
        data += block
        if time.monotonic() > ends_s:
            raise TimeoutError(f"too slow: {len(data)} bytes in {_MOST_S:.0f} s")
    return bytes(data)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        fp.close()  # else its body is read, and need not end
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


def fetch_json(site: str, path: str, *, most_bytes: int = MAX_ANSWER_BYTES) -> Any:
    """:func:`fetch`, decoded.

    Raises:
        UsageError: also where it is not JSON.
    """
    try:
        return json.loads(fetch(site, path, most_bytes=most_bytes))
    except ValueError as error:
        raise UsageError(f"{site}/{path} is not JSON: is that the run's site?") from error
