"""Whether an address can be listened on, said in words for a person.

Kept apart from the server, so that a taken port is reported before anything heavy is imported.
"""

from __future__ import annotations

import errno
import socket

from protocol.errors import UsageError


def require_free(host: str, port: int, option: str = "--listen") -> None:
    """Bind and let go: gRPC's own message does not say what is wrong.

    Args:
        option: what a person gives to choose another.

    Raises:
        UsageError: the address cannot be used, and why.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        address = join_address(host, port)
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"{address} is in use: another coordinator or program listens there; stop it, or "
                f"choose another port with {option}"
            ) from error
        raise UsageError(f"cannot listen on {address}: {error.strerror}; see {option}") from error


def join_address(host: str, port: int) -> str:
    """``host:port``, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
