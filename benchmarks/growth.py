"""
Does a delivery cost the same however many web processes there are?

    python -m benchmarks.growth

All of them share the first core, so more of them cannot deliver more here; what is asked is what each delivery costs.
``python -m benchmarks`` asks the same of the number of sockets.
"""

from __future__ import annotations

from functools import partial

from benchmarks import contestants, rounds, scenarios

PROCESSES = (1, 2, 4)
ROUNDS = 3
PLAN = scenarios.Plan((scenarios.Step(1000, {contestants.RAW: scenarios.BURSTS}),), seconds=1.5)


def main() -> None:
    ours = contestants.named(contestants.REFERENCE)
    entries = [
        rounds.Entry(
            str(processes),
            f"{processes} web process{'es' * (processes > 1)}",
            partial(scenarios.run, ours, PLAN, web_processes=processes),
            scenarios.seconds(ours, PLAN),
        )
        for processes in PROCESSES
    ]
    rounds.run("growth", entries, ROUNDS, PLAN._asdict(), reference="1", word="1 process")


if __name__ == "__main__":
    main()
