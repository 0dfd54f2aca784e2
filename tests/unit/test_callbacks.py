"""Calling the functions of a site: their time, their turns, and what happens when they do not return."""

import asyncio
import gc
import socket
import threading
import time

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.db import connections
from django.utils.functional import SimpleLazyObject

from notifications import Topic
from notifications.access import authorization, callbacks
from notifications.access.callbacks import BusyError, Callbacks, Turns, is_outage, within
from notifications.aio import CutShortError
from tests.testsite import tenancy
from tests.waiting import await_for, scaled

pytestmark = pytest.mark.django_db(transaction=True)
"""Synchronous functions run in threads, which look after their database connections."""


def hang(gate):
    return lambda *arguments: gate.wait(scaled())


async def test_the_time_of_a_call_begins_with_its_turn(monkeypatch):
    """What waits for a thread for longer than a call may take is called all the same, and has all of its time."""
    asked, gate, allowed = Callbacks("test", threads=1, longest_wait=3 * scaled()), threading.Event(), scaled()
    first = asyncio.create_task(asked.call("", 3 * allowed, hang(gate)))
    others = [asyncio.create_task(asked.call("", allowed, lambda: "answer")) for _ in range(3)]
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", lambda time=loop.time: time() + 1.1 * allowed)
    await asyncio.sleep(0.001)
    assert not any(other.done() for other in others)
    gate.set()

    assert await asyncio.gather(first, *others) == [True, *["answer"] * 3]


@pytest.mark.parametrize("sync", [True, False], ids=["threads", "coroutines"])
async def test_an_answer_that_came_while_the_event_loop_was_blocked_counts(sync):
    """Another function of the site blocks the loop for longer than this one may take."""
    asked, called, allowed = Callbacks("test", threads=1, longest_wait=scaled()), threading.Event(), 0.3
    ours, services = socket.socketpair()

    def ask():
        called.set()
        return ours.recv(100)

    async def ask_without_a_thread():
        called.set()
        answer = await asyncio.get_running_loop().sock_recv(ours, 100)
        for _ in range(3):
            await asyncio.sleep(0)  # no HTTP client reads an answer in one step
        return answer

    with ours, services:
        ours.setblocking(sync)
        asking = asyncio.create_task(asked.call("", allowed, ask if sync else ask_without_a_thread))
        await await_for(called.is_set)
        services.send(b"allowed")
        time.sleep(allowed)  # noqa: ASYNC251  this is the fault

        assert await asking == b"allowed"


@pytest.fixture
def gate():
    """Return an event for which ``hang`` waits, and let all go on after the test."""
    gate = threading.Event()
    yield gate
    gate.set()


async def test_what_hangs_keeps_nobody_from_a_turn(gate):
    """Calls of one group, as many as there are threads; it is not called again meanwhile, and others are at once."""
    asked = Callbacks("test", threads=2, longest_wait=scaled())
    hanging = [asyncio.create_task(asked.call(whose, 0.05, hang(gate), group="dead")) for whose in ("ann", "ben")]

    assert await asked.call("", scaled(), lambda: "answer", group="well") == "answer"
    for call in hanging:
        with pytest.raises(TimeoutError):
            await call
    with pytest.raises(BusyError, match="2 calls did not return in time"):
        await asked.call("", scaled(), lambda: "answer", group="dead")
    assert await asked.call("", scaled(), lambda: "answer", group="well") == "answer"


async def test_a_user_whose_calls_hang_holds_up_no_other(gate):
    """Such as one whose row is locked: that says nothing of the rows of others."""
    asked = Callbacks("test", threads=2, longest_wait=scaled())
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await asked.call("ann", 0.01, hang(gate))

    with pytest.raises(BusyError):
        await asked.call("ann", scaled(), lambda: "answer")
    assert await asked.call("ben", scaled(), lambda: "answer") == "answer"


async def test_what_has_hung_is_called_again_after_a_pause(gate, monkeypatch):
    """By then the service may be well, though calls of before, on connections that are dead, have not returned."""
    monkeypatch.setattr(callbacks, "FIRST_PAUSE", 60)
    asked = Callbacks("test", threads=1, longest_wait=scaled())
    for pause in (60, 120, 240):
        with pytest.raises(TimeoutError):
            await asked.call("", 0.01, hang(gate))
        with pytest.raises(BusyError):
            await asked.call("", scaled(), lambda: "answer")
        asked._groups[""].pause_ends -= pause

    assert [await asked.call("", scaled(), lambda: "answer") for _ in range(2)] == ["answer"] * 2


async def test_what_has_hung_is_called_again_when_it_returns(gate):
    asked = Callbacks("test", threads=1, longest_wait=scaled())
    with pytest.raises(TimeoutError):
        await asked.call("", 0.01, hang(gate))
    gate.set()
    await await_for(lambda: not asked._late)

    assert await asked.call("", scaled(), lambda: "answer") == "answer"
    assert not asked._groups


async def test_no_pause_is_longer_than_the_longest(gate, monkeypatch):
    monkeypatch.setattr(callbacks, "FIRST_PAUSE", 100)
    asked = Callbacks("test", threads=1, longest_wait=scaled())
    pauses = []
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asked.call("", 0.01, hang(gate))
        pauses.append(asked._groups[""].pause_ends - asyncio.get_running_loop().time())
        asked._groups[""].pause_ends = 0

    assert pauses == pytest.approx([100, 200, callbacks.LONGEST_PAUSE], abs=20)


async def test_calls_that_hang_at_once_are_followed_by_one_pause(gate, monkeypatch):
    """However many there were: when a database comes back it is asked soon."""
    monkeypatch.setattr(callbacks, "FIRST_PAUSE", 0.2)
    asked = Callbacks("test", threads=2, longest_wait=scaled())
    hanging = [asyncio.create_task(asked.call("", 0.05, hang(gate))) for _ in range(6)]
    await asyncio.wait(hanging)

    loop = asyncio.get_running_loop()
    assert asked._groups[""].silent >= 2
    assert asked._groups[""].pause_ends - loop.time() <= 0.2


@pytest.mark.parametrize(("bound", "groups"), [("MAX_STUCK", "ab"), ("MAX_STUCK_TOGETHER", "aa")])
async def test_what_hangs_is_bounded(gate, monkeypatch, bound, groups):
    """It keeps threads, and perhaps connections to the database."""
    monkeypatch.setattr(callbacks, bound, 2)
    asked = Callbacks("test", threads=3, longest_wait=scaled())
    for group in groups:
        with pytest.raises(TimeoutError):
            await asked.call("", 0.01, hang(gate), group=group)

    with pytest.raises(BusyError, match="2 calls"):
        await asked.call("", scaled(), lambda: "answer", group="a")


async def test_who_goes_away_leaves_a_turn_for_as_long_as_a_call_may_take(gate):
    """Not at once, or those who come and go would start threads without a limit; nor for good if the call hangs."""
    asked = Callbacks("test", threads=1, longest_wait=scaled())
    begun = threading.Event()
    calling = asyncio.create_task(asked.call("", 0.2, lambda: begun.set() or gate.wait(scaled())))
    await await_for(begun.is_set)
    calling.cancel()
    await asyncio.wait([calling])

    next_one = asyncio.create_task(asked.call("", scaled(), lambda: len(asked._late), group="another"))

    assert await next_one == 1


class LibrarysTimeout(BaseException):
    """As the time-outs of gevent and func_timeout."""


@pytest.mark.parametrize(
    ("sync", "error"),
    [
        *((True, error) for error in (SystemExit, LibrarysTimeout, KeyboardInterrupt, GeneratorExit)),
        *((False, error) for error in (SystemExit, LibrarysTimeout)),
    ],
)
async def test_what_would_end_the_process_ends_one_call(sync, error):
    """It is not known what the answer would have been; the next call is served."""
    asked = Callbacks("test", threads=1, longest_wait=scaled())

    def leave():
        raise error

    async def leave_without_a_thread():
        raise error

    with pytest.raises(CutShortError, match=error.__name__):
        await asked.call("", scaled(), leave if sync else leave_without_a_thread)
    assert await asked.call("", scaled(), lambda: "answer") == "answer"


async def test_without_a_thread_nothing_is_known(monkeypatch):
    """A container limits their number; what could not be called is not called later."""
    asked, calls = Callbacks("test", threads=1, longest_wait=scaled()), []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail_to_start)
        with pytest.raises(OSError, match="can't start new thread") as caught:
            await asked.call("", scaled(), calls.append, 1)
    await asked.call("", scaled(), calls.append, 2)

    assert is_outage(caught.value)
    assert calls == [2]


def fail_to_start(thread):
    raise RuntimeError("can't start new thread")


async def test_threads_that_could_not_be_started_are_started_later(monkeypatch):
    """As many calls run at once as before."""
    asked, together = Callbacks("test", threads=4, longest_wait=scaled()), threading.Barrier(4)
    await asked.call("", scaled(), lambda: "answer")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail_to_start)
        await asyncio.gather(*(asked.call("", scaled(), time.sleep, 0.01) for _ in range(4)), return_exceptions=True)

    await asyncio.gather(*(asked.call("", scaled(), together.wait, scaled()) for _ in range(4)))


async def test_more_threads_than_usual_end_after_their_calls(gate):
    """And close their connections to databases, of which a database has not many."""
    asked, closed, threads = Callbacks("test", threads=1, longest_wait=scaled()), [], []

    def hang_with_a_connection():
        connections["default"].ensure_connection()
        connections["default"].close = lambda: closed.append(threading.current_thread())
        threads.append(threading.current_thread())
        return gate.wait(scaled())

    for group in ("one", "two", "three"):
        with pytest.raises(TimeoutError):
            await asked.call("", 0.05, hang_with_a_connection, group=group)
    gate.set()

    await await_for(lambda: sum(not thread.is_alive() for thread in threads) == 2)
    assert {thread for thread in threads if not thread.is_alive()} <= set(closed)


async def test_threads_are_used_again_and_end_with_their_loop():
    asked = Callbacks("test", threads=4, longest_wait=scaled())
    names = {(await asked.call("", scaled(), threading.current_thread)) for _ in range(10)}
    assert len(names) == 1

    del asked
    await await_for(lambda: gc.collect() is not None and not any(thread.is_alive() for thread in names))


async def test_what_is_lazy_is_evaluated_in_its_thread():
    """Where the database may be asked."""
    asked, seen = Callbacks("test", threads=1, longest_wait=scaled()), []
    user = User(pk=1)
    lazy = SimpleLazyObject(lambda: seen.append(threading.current_thread()) or user)

    assert (await asked.call("", scaled(), lambda: lazy)).pk == 1
    assert seen != [threading.current_thread()]


async def test_a_function_that_raises_stop_iteration_gives_its_thread_back():
    """As a ``next`` that finds nothing does: Python 3.11 takes such an exception into no future."""
    asked = Callbacks("test", threads=1, longest_wait=scaled())

    for _ in range(2):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asked.call("", scaled(), lambda: next(iter(())))


@pytest.mark.parametrize("sync", [True, False], ids=["threads", "coroutines"])
async def test_whoever_goes_away_takes_no_turn(sync):
    """A socket that closes while it waits leaves the queue, and one that is being served gives its turn back."""
    gate, asked = threading.Event(), Callbacks("test", threads=1, longest_wait=scaled())
    asked._coroutines = Turns(1)

    async def wait_for_gate():
        await await_for(gate.is_set)

    function = hang(gate) if sync else wait_for_gate
    served = asyncio.create_task(asked.call("a", scaled(), function))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(asked.call(str(n), scaled(), function)) for n in range(5)]
    await asyncio.sleep(0)
    for task in (served, *waiting):
        task.cancel()
    await asyncio.wait([served, *waiting])
    gate.set()

    assert await asked.call("b", scaled(), lambda: "answer") == "answer"
    assert all(turns._length == 0 and not turns._waiting for turns in (asked._threads, asked._coroutines))


async def test_no_user_waits_for_all_calls_of_another():
    """Users take turns: a single call waits for one call of each other user, however many those have."""
    turns, served = Turns(1), []
    await turns.take("first", scaled())

    async def ask(whose):
        await turns.take(whose, scaled())
        served.append(whose)
        turns.give_back()

    tasks = [asyncio.create_task(ask("greedy")) for _ in range(50)]
    tasks += [asyncio.create_task(ask(whose)) for whose in ("modest", "other")]
    await asyncio.sleep(0)
    turns.give_back()
    await asyncio.gather(*tasks)

    assert served[:3] == ["greedy", "modest", "other"]
    assert len(served) == 52


async def test_the_queue_is_bounded(monkeypatch):
    """One more than may wait is told so at once; it costs the others nothing."""
    monkeypatch.setattr(callbacks, "MAX_WAITING", 3)
    turns = Turns(1)
    await turns.take("", scaled())
    waiting = [asyncio.create_task(turns.take("", scaled())) for _ in range(3)]
    await asyncio.sleep(0)

    with pytest.raises(BusyError):
        await turns.take("", scaled())
    for task in waiting:
        turns.give_back()
        await task


async def test_what_waits_for_too_long_is_told_so():
    """A queue in which nothing moves keeps nobody for ever, and nothing of whom it has sent away."""
    turns = Turns(1)
    await turns.take("", scaled())

    for _ in range(3):
        with pytest.raises(BusyError):
            await turns.take("", 0.01)

    assert (turns._length, len(turns._waiting)) == (0, 0)
    turns.give_back()
    await turns.take("", 0.01)


async def cancel_oneself(*arguments):
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


async def await_what_was_cancelled(*arguments):
    other = asyncio.get_running_loop().create_future()
    other.cancel()
    await other


def run_what_is_cancelled(*arguments):
    async_to_sync(await_what_was_cancelled)()


def look_synchronous(*arguments):
    return cancel_oneself()


@pytest.mark.parametrize(
    "function", [cancel_oneself, await_what_was_cancelled, run_what_is_cancelled, look_synchronous]
)
async def test_a_function_that_cancels_its_task_cancels_nobody_else(function, settings):
    """Whoever asked goes on, and knows that nobody could say: a task that all sockets depend on may have asked."""
    asked = Callbacks("test", threads=1, longest_wait=1)
    with pytest.raises(CutShortError):
        await asked.call("", scaled(), function)
    assert not asyncio.current_task().cancelling()

    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TOPICS": {"order": {"AUTHORIZE": function}}}
    assert await authorization.authorized(User(pk=1), Topic("order", "7")) is None


async def test_a_coroutine_that_does_not_return_is_ended():
    """In its time, and nothing of it is left."""
    asked, before = Callbacks("test", threads=1, longest_wait=1), asyncio.all_tasks()

    async def never(*arguments):
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await asked.call("", 0.05, never)

    assert asyncio.all_tasks() == before


@pytest.fixture
def schemas(settings):
    """Let each tenant have a schema, which a thread is in as a connection of PostgreSQL is; return that of a thread."""
    settings.NOTIFICATIONS = {**settings.NOTIFICATIONS, "TENANT_CONTEXT": "tests.testsite.tenancy.schema"}
    return lambda: getattr(tenancy._thread, "schema", None)


async def ask_the_orm(name, schemas):
    """Ask in several queries which schema they are in, as an asynchronous function of a site does."""
    seen = set()
    for _ in range(5):
        seen.add(await sync_to_async(schemas)())
        await asyncio.sleep(0.001)
    return name, seen


@pytest.mark.parametrize(
    "function", [ask_the_orm, lambda *arguments: ask_the_orm(*arguments)], ids=["asynchronous", "around one"]
)
async def test_an_asynchronous_function_is_in_its_tenants_context(schemas, function):
    """Its queries are in the schema of its tenant and of no other, also while those of others run."""
    asked = Callbacks("test", 4, scaled())
    names = [f"tenant{number % 3}" for number in range(12)]

    answers = await asyncio.gather(
        *(asked.call(name, scaled(), within(name, function), name, schemas) for name in names)
    )

    assert answers == [(name, {name}) for name in names]
    assert await sync_to_async(schemas)() is None


async def test_a_synchronous_function_is_in_its_tenants_context(schemas):
    assert await Callbacks("test", 1, scaled()).call("", scaled(), within("acme", schemas)) == "acme"


async def test_an_asynchronous_function_that_is_cancelled_in_a_tenant_cancels_nobody(schemas):
    """It counts as no answer, as it does without tenants."""

    async def be_cancelled():
        other = asyncio.get_running_loop().create_future()
        other.cancel()
        await other

    with pytest.raises(CutShortError):
        await Callbacks("test", 1, scaled()).call("", scaled(), within("acme", be_cancelled))


async def test_an_asynchronous_function_that_hangs_in_a_tenant_is_given_up(schemas):
    """After its time; its thread is free again when it returns."""
    go_on = asyncio.Event()
    asked = Callbacks("test", 1, scaled())

    with pytest.raises(TimeoutError):
        await asked.call("", 0.05, within("acme", go_on.wait))
    go_on.set()
    await await_for(lambda: not asked._late)

    assert await asked.call("", scaled(), within("acme", schemas)) == "acme"
