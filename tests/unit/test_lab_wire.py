"""Frames arrive complete and in order, however the stream of bytes is split."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiotool.lab import wire

FRAMES = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=8)


@pytest.fixture
def pair() -> Iterator[tuple[wire.Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield wire.Channel(ours.fileno()), theirs


@given(frames=FRAMES, cut=st.integers(1, 40))
def test_frames_survive_any_split_of_the_stream(frames: list[tuple[int, bytes]], cut: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender, receiver = wire.Channel(ours.fileno()), wire.Channel(theirs.fileno())
        for kind, payload in frames:
            sender.send(kind, payload)
        data, got = bytes(sender.pending), []
        for start in range(0, len(data), cut):
            os.write(ours.fileno(), data[start : start + cut])
            got += receiver.receive()
    assert got == frames


def test_flush_stops_where_it_would_block(pair: tuple[wire.Channel, socket.socket]) -> None:
    channel, other = pair
    channel.send(wire.STDOUT, bytes(4 << 20))
    whole = len(channel.pending)
    channel.flush()
    assert channel.full
    arrived = len(other.recv(16 << 20, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    assert 0 < arrived < whole


def test_a_closed_port_is_an_error(pair: tuple[wire.Channel, socket.socket]) -> None:
    channel, other = pair
    assert channel.receive() == []
    other.close()
    with pytest.raises(wire.WireError, match="closed"):
        channel.receive()


def test_an_oversized_frame_is_an_error(pair: tuple[wire.Channel, socket.socket]) -> None:
    channel, other = pair
    other.send(b"\xff" * 16)
    with pytest.raises(wire.WireError, match="longer"):
        channel.receive()
