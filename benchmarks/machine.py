"""The machine: its cores, what a process used of them, and what it is called."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.postgres import find_program

PACKAGES: Final = (
    "django",
    "channels",
    "channels-redis",
    "daphne",
    "uvicorn",
    "uvloop",
    "websockets",
    "redis",
    "hiredis",
    "msgspec",
    "python-socketio",
    "picows",
    "psycopg",
    "granian",
    "hypercorn",
)

NODE: Final = Path(__file__).resolve().parent / "node"
OTHER_DESCRIPTORS: Final = 200

AVAILABLE: Final = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
"""Cores we may use, read before we pin ourselves to one."""
PINNED: Final = len(AVAILABLE) > 1
"""What is measured runs on the first core, what measures and Redis on the last; with one core all share it."""


def pin_measured(pid: int) -> None:
    _pin(pid, AVAILABLE[0])


def pin_load(pid: int) -> None:
    _pin(pid, AVAILABLE[-1])


def unpin(pid: int) -> None:
    _pin(pid, *AVAILABLE)


def _pin(pid: int, *cores: int) -> None:
    if PINNED:
        for thread in psutil.Process(pid).threads():
            os.sched_setaffinity(thread.id, cores)


def workers(pid: int) -> list[int]:
    """Return the processes that serve: those that a server has started for it, or the server itself."""
    children = psutil.Process(pid).children()
    started = [child.pid for child in children if not any("resource_tracker" in word for word in child.cmdline())]
    return started or [pid]


def allow_sockets(wanted: int) -> int:
    """
    Raise our limit of file descriptors, which the processes we start inherit, as far as it may be raised.

    Returns:
        How many of the ``wanted`` sockets a process may have; a few descriptors are for other things.

    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(wanted, hard - OTHER_DESCRIPTORS)


def cpu_seconds(pid: int) -> float:
    """
    CPU time of a process and its children so far.

    Linux counts in nanoseconds in ``schedstat``; elsewhere it is in ticks of 10 ms.
    """
    process = psutil.Process(pid)
    return sum(_own_cpu_seconds(each) for each in [process, *process.children(recursive=True)])


def _own_cpu_seconds(process: psutil.Process) -> float:
    tasks = list(Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
    if tasks:
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
    times = process.cpu_times()
    return times.user + times.system


def memory(pid: int) -> int:
    """Resident bytes of a process and its children."""
    process = psutil.Process(pid)
    return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])


def describe(redis_info: dict[str, Any], *, node: bool) -> dict[str, Any]:
    """Say where and on what the figures were measured."""
    software = {name: found for name in PACKAGES if (found := _version(name))}
    server = "valkey" if "valkey_version" in redis_info else "redis"
    software[server] = redis_info[f"{server}_version"]
    software["python"] = platform.python_version()
    if "psycopg" in software and (said := _said(find_program("postgres"), "--version")):
        software["postgresql"] = said.split()[2]
    if node:
        software["node"] = _said(Path("node"), "--version")
        modules = json.loads((NODE / "package.json").read_text())["dependencies"]
        software |= {f"{name} (npm)": wanted for name, wanted in modules.items()}
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "pinned": PINNED,
        "kernel": platform.platform(),
        "load average before": [round(each, 2) for each in os.getloadavg()],
        "software": software,
    }


def _said(program: Path | None, *arguments: str) -> str:
    return subprocess.run([program, *arguments], capture_output=True, text=True).stdout.strip() if program else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
