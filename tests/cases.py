"""
Many cases in one test, for tests that take microseconds.

As a test of its own, each case would cost milliseconds of fixtures and reports.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


def cases(names: str | tuple[str, ...], values: Iterable[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """
    Run a test for each of some values of its arguments, which are given as to ``pytest.mark.parametrize``.

    A case that fails is named below the traceback, and the cases behind it are not run. All cases share the fixtures:
    use it for tests that leave nothing behind in them.
    """
    several = isinstance(names, tuple)
    each = [dict(zip(names, value, strict=True)) if several else {names: value} for value in values]
    assert each, "a test without cases proves nothing"

    def decorate(test: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(test):

            @functools.wraps(test)
            async def run(**fixtures: Any) -> None:
                for case in each:
                    with _named(case):
                        await test(**fixtures, **case)

        else:

            @functools.wraps(test)
            def run(**fixtures: Any) -> None:
                for case in each:
                    with _named(case):
                        test(**fixtures, **case)

        signature = inspect.signature(test)
        fixtures = [parameter for name, parameter in signature.parameters.items() if name not in each[0]]
        run.__signature__ = signature.replace(parameters=fixtures)  # pytest asks for these only
        return run

    return decorate


@contextmanager
def _named(case: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        shown = (f"{name}={re.sub(' at 0x[0-9a-f]+', '', ascii(value))[:200]}" for name, value in case.items())
        error.add_note(f"case: {', '.join(shown)}")
        raise
