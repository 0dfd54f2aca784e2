"""
Does a delivery cost the same however many sockets and web processes there are?

    python -m benchmarks.growth

All web processes share the first core, so more of them cannot deliver more here; what is asked is what each delivery
costs. A unicast burst always has at least 1,000 messages, because small ones cost more wherever they go.
"""

from __future__ import annotations

from functools import partial

from benchmarks import contestants, rounds, scenarios
from benchmarks.machine import allow_sockets

SOCKETS = (10, 100, 1000, 5000)
PROCESSES = (2, 4)
"""With 1,000 sockets; the row of 1,000 sockets is that of one."""
REFERENCE = "1000"
ROUNDS = 3
PLAN = scenarios.Plan(sockets=1000, seconds=1.5, latency_seconds=0, unicast_burst=1000)


def main() -> None:
    most = allow_sockets(max(SOCKETS))
    if most < max(SOCKETS):
        print(f"only {most} sockets: a process may open no more files (ulimit -n)")
    entries = {
        str(sockets): rounds.Entry(f"{sockets:,} sockets", _one(PLAN._replace(sockets=sockets)))
        for sockets in sorted({min(sockets, most) for sockets in SOCKETS})
    }
    for processes in PROCESSES:
        title = f"{PLAN.sockets:,} sockets, {processes} web processes"
        entries[f"{processes} processes"] = rounds.Entry(title, _one(PLAN, web_processes=processes))
    rounds.run("growth", entries, ROUNDS, PLAN._asdict(), reference=REFERENCE, word="1,000 sockets")


def _one(plan: scenarios.Plan, web_processes: int = 1) -> partial[dict[str, scenarios.Figures]]:
    ours = contestants.ALL[0]
    return partial(scenarios.run, ours, plan, ["raw"], web_processes=web_processes)


if __name__ == "__main__":
    main()
