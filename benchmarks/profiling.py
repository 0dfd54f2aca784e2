"""Where the time goes: py-spy, which has to be installed for it, watches server and listener during a round."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.machine import pin_load
from benchmarks.stage import Stage


@contextmanager
def profiled(stage: Stage, scenario: str, directory: Path | None) -> Iterator[None]:
    """Write what the processes do meanwhile to ``directory``, a line a stack and how often it was seen."""
    if directory is None:
        yield
        return
    if (spy := shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")) is None:
        raise RuntimeError("--profile needs py-spy: pip install py-spy")
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{stage.contestant.name}-{scenario.replace(' ', '-')}"
    roles = {"server": stage.servers[:1], "listener": stage.listeners[:1]}
    watchers = []
    for role, processes in roles.items():
        for process in processes:
            output = directory / f"{name}-{role}.txt"
            options = ["--format", "raw", "--rate", "500", "--nonblocking", "--output", output]
            command = [spy, "record", "--pid", str(process.pid), *options]
            watchers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    for watcher in watchers:
        pin_load(watcher.pid)
    try:
        yield
    finally:
        for watcher in watchers:
            watcher.send_signal(signal.SIGINT)
            watcher.wait()
