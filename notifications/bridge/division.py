"""
Which listener is to lead which shard. Pure.

Every listener computes the same plan from the same reports, and hands over what is another's
according to it. Nobody is asked, and nothing moves that need not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


def plan(held: Mapping[str, Collection[int]], shards: int) -> dict[int, str]:
    """
    Divide shards among listeners: the numbers that two of them lead differ by one at most.

    Args:
        held: By the id of each listener, the shards that it leads. For a moment, reports may say of two that they
            lead the same.
        shards: How many there are.

    Returns:
        Whose each shard is to be. As few as possible are another's than before.

    """
    listeners = sorted(held)
    if not listeners:
        return {}
    mine: dict[str, list[int]] = {listener: [] for listener in listeners}
    free = list(range(shards))
    for listener in listeners:
        for shard in sorted(held[listener]):
            if shard in free:
                free.remove(shard)
                mine[listener].append(shard)
    least, more = divmod(shards, len(listeners))
    by_number = sorted(listeners, key=lambda listener: (-len(mine[listener]), listener))
    share = {listener: least + (place < more) for place, listener in enumerate(by_number)}
    for listener in listeners:
        free += mine[listener][share[listener] :]
        del mine[listener][share[listener] :]
    free.sort()
    for listener in listeners:
        while len(mine[listener]) < share[listener]:
            mine[listener].append(free.pop(0))
    return {shard: listener for listener in listeners for shard in mine[listener]}
