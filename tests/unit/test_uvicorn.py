"""The parts of the WebSocket class for uvicorn that need no server, and what it relies on in uvicorn."""

import ast
import asyncio
import hashlib
import importlib.util
import inspect
import itertools
import json

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from notifications.uvicorn import MAX_REMEMBERED, WebSocketProtocol, _Corked, _Frames, _Incoming

DIGEST = "0bbcec98938432f71b93ca20eea63487298f4650159242db8526a6f664902997"
"""Of the source of uvicorn's class in 0.54.0."""


class Writes:
    """A transport that takes note of each write."""

    def __init__(self):
        self.taken = []

    def write(self, data):
        self.taken.append(bytes(data))

    def is_closing(self):
        return False

    def get_write_buffer_size(self):
        return 0

    def get_extra_info(self, name):
        return None

    def close(self):
        self.taken.append("close")


async def test_what_is_written_in_one_turn_leaves_in_one_write():
    """At the end of the turn, in order; the next turn has its own."""
    transport = Writes()
    corked = _Corked(transport, asyncio.get_running_loop(), lambda size: True)

    corked.write(b"a")
    corked.write(b"b")
    now = list(transport.taken)
    await asyncio.sleep(0)
    corked.write(b"c")
    await asyncio.sleep(0)
    corked.write(b"d")
    corked.close()
    await asyncio.sleep(0)

    assert now == []
    assert transport.taken == [b"ab", b"c", b"d", "close"]


async def test_texts_are_written_now_but_behind_what_waits():
    transport = Writes()
    corked = _Corked(transport, asyncio.get_running_loop(), lambda size: True)

    corked.write_texts(["a", "b"])
    corked.write(b"ping")
    corked.write_texts(["c"])
    now = list(transport.taken)
    await asyncio.sleep(0)

    assert now == [b"\x81\x01a\x81\x01b"]
    assert transport.taken == [b"\x81\x01a\x81\x01b", b"ping\x81\x01c"]


async def test_whether_texts_can_be_written_is_asked_after_everything_else():
    """Whatever ends a connection writes or closes; only what is written between two texts saves the question."""
    asked = []

    def takes(size):
        asked.append(size)
        corked.longest = 3
        return size < 5

    corked = _Corked(Writes(), asyncio.get_running_loop(), takes)
    written = [corked.write_texts([text]) for text in ("a", "bb", "ccc", "dddd", "eeeee")]
    corked.write(b"ping")
    written += [corked.write_texts([text]) for text in ("a", "bb")]
    corked.close()
    written.append(corked.write_texts(["a"]))

    assert asked == [1, 4, 5, 1, 1]
    assert written == [True, True, True, True, False, True, True, True]


async def test_what_waits_in_one_turn_is_bounded():
    """A turn in which much is sent writes several times, so that a transport can ask for a pause."""
    transport = Writes()
    corked = _Corked(transport, asyncio.get_running_loop(), lambda size: True)

    for _ in range(10):
        corked.write(b"x" * 30_000)

    assert [len(write) for write in transport.taken] == [90_000, 90_000, 90_000]
    await asyncio.sleep(0)
    assert sum(map(len, transport.taken)) == 300_000


def test_a_text_is_framed_once():
    """Equal texts have one frame."""
    frames = _Frames()

    assert frames[json.dumps({"a": 1})] is frames[json.dumps({"a": 1})]


def test_remembered_frames_are_bounded():
    """Old ones are forgotten; one that is larger than all may be is made anew."""
    frames, size = _Frames(), MAX_REMEMBERED // 10
    for number in range(100):
        frames[f"{number}".ljust(size)]
        assert sum(map(len, frames.values())) <= MAX_REMEMBERED
    frames["x" * 2 * MAX_REMEMBERED]
    assert sum(map(len, frames.values())) <= MAX_REMEMBERED


def frame_of_size(size, masked):
    """Return a frame with so many bytes of content."""
    mask = 0x80 if masked else 0
    if size < 126:
        head = bytes((0x82, mask | size))
    elif size < 65536:
        head = bytes((0x82, mask | 126)) + size.to_bytes(2)
    else:
        head = bytes((0x82, mask | 127)) + size.to_bytes(8)
    return head + bytes(4 * masked + size)


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 125, 126, 300, 65535, 65536]), st.booleans()), max_size=6),
    st.lists(st.integers(0, 70_000) | st.integers(0, 20), max_size=20),
)
def test_what_a_client_sends_is_cut_at_the_ends_of_its_frames(frames, cuts):
    """However it arrives, nothing is lost, and nothing that is taken reaches into the next frame."""
    frames = [frame_of_size(*each) for each in frames]
    ends = [sum(map(len, frames[:number])) for number in range(1, len(frames) + 1)]
    sent, incoming, taken = b"".join(frames), _Incoming(), []
    for begin, end in itertools.pairwise([0, *sorted(cuts), 500_000]):
        incoming += sent[begin:end]
        while piece := incoming.take():
            taken.append(piece)

    assert b"".join(taken) == sent
    assert set(ends) <= {sum(map(len, taken[:number])) for number in range(1, len(taken) + 1)}


@pytest.mark.parametrize("version", ["0.53.9", "0.55.0", "1.0.0b1"])
def test_an_unknown_uvicorn_is_refused(monkeypatch, version):
    """At start-up, with what to do; not with faults later."""
    monkeypatch.setattr(uvicorn, "__version__", version)
    spec = importlib.util.spec_from_file_location("notifications.again", inspect.getsourcefile(WebSocketProtocol))

    with pytest.raises(ImportError, match=rf"{version}: install django-realtime-notifications\[uvicorn\]"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_uvicorns_class_is_the_one_that_ours_was_made_for():
    """
    It is private to uvicorn. If this fails, uvicorn has changed it: compare it with the one before, run uvicorn's own
    tests of WebSockets with ours, and then write down the new digest and the versions.
    """
    source = inspect.getsource(WebSocketsSansIOProtocol)
    called = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self.transport"
    }

    assert {name for name in called if name not in vars(_Corked)} == set(), "our transport lacks what uvicorn calls"
    assert hashlib.sha256(source.encode()).hexdigest() == DIGEST, "uvicorn's class has changed"
