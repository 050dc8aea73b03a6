"""Several devices of one machine: what each may take, whose they are, how they live and end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from protocol.errors import UsageError
from protocol.identity import Identity
from worker import delegation, fleet
from worker.config import Home, WorkerConfig
from worker.control import ask
from worker.fleet import Fleet
from worker.fleet_status import merge_status
from worker.limits import Limits
from worker.members import (
    checked_devices,
    divide,
    members_of,
    parse_devices,
    vouch_for_members,
    write_members,
)
from worker.status import Board, Phase
from worker.view import rows

LINK = (
    "barnraise://127.0.0.1:7443/"
    + "ab" * 32
    + "#root=12D3KooWBMaEf8ZVKXhgBdLoDm5Q9cTCDAG4zoHWHPDt8mVHvK7F"
)
