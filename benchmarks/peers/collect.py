"""Lets the benchmark compare memory: a server that gets SIGUSR2 collects its garbage and says so."""

import gc
import os
import signal


def _collect(*_: object) -> None:
    gc.collect()
    os.write(1, b"collected\n")


def on_signal() -> None:
    signal.signal(signal.SIGUSR2, _collect)
