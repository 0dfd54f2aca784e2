"""Counts what happened in this process; every module that loses, refuses or carries something says so here."""

from __future__ import annotations

from collections import Counter

counts: Counter[tuple[str, str]] = Counter()
"""By name and reason: ``counts["refused", "not JSON"]``."""


def count(name: str, reason: str = "", amount: int = 1) -> None:
    counts[name, reason] += amount
