"""The eager tasks of Python 3.12, on 3.11 too: ``create_task`` makes their first step at once."""

import asyncio
from asyncio.tasks import _enter_task, _leave_task


def _eager_task(loop, coroutine, context=None):
    if not loop.is_running():
        return asyncio.Task(coroutine, loop=loop, context=context)
    steps = []
    loop.call_soon = lambda step, context: steps.append((step, context))
    try:
        task = asyncio.tasks._PyTask(coroutine, loop=loop, context=context)
    finally:
        del loop.call_soon
    caller = asyncio.current_task()
    if caller is not None:
        _leave_task(loop, caller)
    try:
        [(step, context)] = steps
        context.run(step)
    finally:
        if caller is not None:
            _enter_task(loop, caller)
    return task


def use_eager_tasks():
    """Have the running loop make all tasks eagerly, as a site may."""
    factory = getattr(asyncio, "eager_task_factory", _eager_task)
    asyncio.get_running_loop().set_task_factory(factory)
