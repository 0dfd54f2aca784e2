"""
What ``make mutants`` found: how many faults no test noticed, by module.

It fails where ``mutants.md`` does not say why a fault cannot, or need not, be noticed, and names what to do.
"""

# ruff: noqa: T201  a program for a terminal

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

REASONS = Path(__file__).with_suffix(".md")
MOST = 0.1
"""The share of faults that may stay unnoticed, whatever the reasons."""
NOTICED = {"killed", "timeout", "segfault"}
"""Also a fault with which a test does not come to its end, or its process to a sudden one."""


def mutmut(*arguments: str) -> str:
    command = [Path(sys.executable).with_name("mutmut"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def results() -> list[tuple[str, str, str]]:
    """List the module, the name and the fate of each mutant."""
    found = re.findall(r"^\s*((\S+)\.xǁ?\S+__mutmut_\d+): (.+)$", mutmut("results", "--all", "true"), re.MULTILINE)
    return [(module, name, fate) for name, module, fate in found]


def described(name: str) -> str:
    """Write what a mutant is as ``mutants.md`` does: the function, and the lines as they became."""
    function = name.rpartition(".x")[2].rpartition("__mutmut_")[0][1:].replace("ǁ", ".")
    lines = [line[1:].strip() for line in mutmut("show", name).splitlines() if re.match(r"\+(?!\+\+ )", line)]
    return f"`{function}`: `{' '.join(lines)}`"


def main() -> int:
    total: Counter[str] = Counter()
    unnoticed: Counter[str] = Counter()
    unexplained: list[str] = []
    reasons = REASONS.read_text()
    for module, name, fate in results():
        total[module] += 1
        if fate in NOTICED:
            continue
        unnoticed[module] += 1
        if (what := described(name)) not in reasons:
            unexplained.append(f"{what} ({fate}: {name})")
    print(f"{'module':40}{'faults':>8}{'noticed':>9}{'not':>5}")
    for module in total:
        print(f"{module:40}{total[module]:8}{total[module] - unnoticed[module]:9}{unnoticed[module]:5}")
    share = unnoticed.total() / max(1, total.total())
    print(f"{'all':40}{total.total():8}{total.total() - unnoticed.total():9}{unnoticed.total():5}   {share:.1%}")
    if unexplained:
        print(f"\nTo be noticed by a test, or to be given a reason in {REASONS.relative_to(Path.cwd())}:")
        print(*unexplained, sep="\n")
    if not total:
        print("mutmut has tried nothing; see its output above")
    return 0 if total and not unexplained and share < MOST else 1


if __name__ == "__main__":
    sys.exit(main())
