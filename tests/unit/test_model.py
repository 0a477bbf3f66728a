"""The model of a group's life cycle: its rules by era, and invariants of every reachable state."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from vfiotool.host.era import Era
from vfiotool.stress.model.diagram import draw
from vfiotool.stress.model.lifecycle import ContainerState, Member, Model, Prediction, State
from vfiotool.stress.model.operation import Bound, Kind, Operation
from vfiotool.stress.model.walk import Walk, explore
from vfiotool.stress.record import ExpectedUevent
from vfiotool.vfio.uapi import GroupFlags

GUIDE = Path(__file__).parents[2] / "docs/group-life-cycle.md"
ERAS = list(Era)
NOTIFIED = [Era.DEFERRED_PUT, Era.NOTIFIER]
OWNED = [Era.DMA_OWNER, Era.CDEV]
CLOSES = (Kind.CLOSE_DEVICE, Kind.CLOSE_CDEV, Kind.CLOSE_GROUP, Kind.CLOSE_CONTAINER)

OPEN = Operation(Kind.OPEN_GROUP)
CLOSE = Operation(Kind.CLOSE_GROUP)
CONTAINER = Operation(Kind.OPEN_CONTAINER)
SET = Operation(Kind.SET_CONTAINER)
UNSET = Operation(Kind.UNSET_CONTAINER)
IOMMU = Operation(Kind.SET_IOMMU)
STATUS = Operation(Kind.GET_STATUS)
DEVICE = Operation(Kind.GET_DEVICE_FD)
CLOSE_DEVICE = Operation(Kind.CLOSE_DEVICE)
UNBIND = Operation(Kind.UNBIND)
BIND = Operation(Kind.BIND, to=Bound.VFIO)
READY = (CONTAINER, OPEN, SET, IOMMU)

ALONE = State((Member(Bound.VFIO),))
BESIDE_HOST = State((Member(Bound.VFIO), Member(Bound.HOST)))
BESIDE_NONE = State((Member(Bound.VFIO), Member()))


def model(era: Era) -> Model:
    return Model(era, has_device_class=era.has_dma_owner)


def after(era: Era, state: State, *operations: Operation) -> Prediction:
    """Return the prediction of the last operation, after all others succeeded."""
    *before, last = operations
    for operation in before:
        prediction = model(era).predict(state, operation)
        assert prediction.errno == 0, str(operation)
        state = prediction.state
    assert last in model(era).operations(state)
    return model(era).predict(state, last)


# The rules, era by era


@pytest.mark.parametrize(
    ("state", "operations", "codes"),
    [
        (State((Member(),)), [OPEN], (errno.ENOENT, errno.ENOENT)),
        (ALONE, [OPEN, OPEN], (errno.EBUSY, errno.EBUSY)),
        (ALONE, [*READY, DEVICE, CLOSE, OPEN], (errno.EBUSY, errno.EBUSY)),
        (ALONE, [*READY, DEVICE, CLOSE, CLOSE_DEVICE, OPEN], (0, 0)),
        (ALONE, [CONTAINER, OPEN, SET, SET], (errno.EINVAL, errno.EINVAL)),
        (BESIDE_HOST, [CONTAINER, OPEN, SET], (0, errno.EPERM)),
        (ALONE, [CONTAINER, IOMMU], (errno.EINVAL, errno.EINVAL)),
        (ALONE, [*READY, IOMMU], (errno.EINVAL, errno.EINVAL)),
        (ALONE, [OPEN, UNSET], (errno.EINVAL, errno.EINVAL)),
        (ALONE, [*READY, DEVICE, UNSET], (errno.EBUSY, errno.EBUSY)),
        (ALONE, [*READY, UNSET], (0, 0)),
        (ALONE, [OPEN, DEVICE], (errno.EINVAL, errno.EINVAL)),
        (ALONE, [CONTAINER, OPEN, SET, DEVICE], (errno.EINVAL, errno.EINVAL)),
        (BESIDE_NONE, [OPEN, Operation(Kind.GET_DEVICE_FD, member=1)], (errno.EINVAL, errno.ENODEV)),
        (BESIDE_NONE, [*READY, Operation(Kind.GET_DEVICE_FD, member=1)], (errno.ENODEV, errno.ENODEV)),
        (BESIDE_NONE, [*READY, Operation(Kind.BIND, member=1, to=Bound.STUB)], (0, 0)),
        (ALONE, [OPEN, UNBIND, OPEN], (errno.EBUSY, None)),
        (ALONE, [OPEN, UNBIND, STATUS], (0, errno.ENODEV)),
        (ALONE, [CONTAINER, OPEN, UNBIND, SET], (0, errno.ENODEV)),
    ],
    ids=str,
)
def test_errno_of_an_operation_by_era(
    state: State, operations: list[Operation], codes: tuple[int, int | None]
) -> None:
    """``codes`` are the errnos up to 5.18 and since 5.19; None if the operation is not possible."""
    for eras, code in zip((NOTIFIED, OWNED), codes, strict=True):
        for era in eras:
            if code is not None:
                assert after(era, state, *operations).errno == code


@pytest.mark.parametrize("era", ERAS)
def test_a_live_group_refuses_a_host_driver(era: Era) -> None:
    bind = Operation(Kind.BIND, member=1, to=Bound.HOST)
    prediction = after(era, BESIDE_NONE, CONTAINER, OPEN, SET, bind)
    if era.has_dma_owner:
        assert (prediction.errno, prediction.crash) == (errno.EBUSY, "")
    else:
        assert prediction.crash.startswith("BUG_ON")
    assert after(era, BESIDE_NONE, OPEN, bind).errno == 0


@pytest.mark.parametrize("era", NOTIFIED)
@pytest.mark.parametrize("state", [BESIDE_HOST, State((Member(Bound.HOST),), is_open=True)])
def test_up_to_5_18_an_iommu_takes_the_dma_of_a_host_driver_away(era: Era, state: State) -> None:
    ready = [one for one in READY if one is not OPEN or not state.is_open]
    assert "DMA" in after(era, state, *ready).crash
    assert not after(era, replace(state, members=(Member(Bound.VFIO),)), *ready).crash


@pytest.mark.parametrize("era", ERAS)
def test_an_unbind_waits_for_device_fds_and_up_to_5_18_for_the_container(era: Era) -> None:
    assert after(era, ALONE, *READY, DEVICE, UNBIND).waits_for == "its fds are closed"
    waits = "" if era.has_dma_owner else "the container is unset"
    assert after(era, ALONE, CONTAINER, OPEN, SET, UNBIND).waits_for == waits
    assert after(era, ALONE, OPEN, UNBIND).waits_for == ""
    other = State((Member(Bound.VFIO), Member(Bound.VFIO)))
    assert after(era, other, CONTAINER, OPEN, SET, UNBIND).waits_for == ""


@pytest.mark.parametrize("era", ERAS)
def test_flags_of_get_status(era: Era) -> None:
    assert after(era, ALONE, OPEN, STATUS).flags == GroupFlags.VIABLE
    assert after(era, BESIDE_HOST, OPEN, STATUS).flags == 0
    assert (
        after(era, ALONE, CONTAINER, OPEN, SET, STATUS).flags == GroupFlags.VIABLE | GroupFlags.CONTAINER_SET
    )


def test_actions_of_the_notifier() -> None:
    """Seen on 5.10: the group of a single device is made between two actions, and gone before the last."""
    put = "vfio_group_put_bg"
    alone = State((Member(),))
    assert after(Era.DEFERRED_PUT, alone, BIND).probes == ("BOUND_DRIVER", put)
    assert after(Era.DEFERRED_PUT, ALONE, UNBIND).probes == ("UNBIND_DRIVER", put)
    assert after(Era.DEFERRED_PUT, ALONE, OPEN, UNBIND).probes == (
        "UNBIND_DRIVER", put, "UNBOUND_DRIVER", put,
    )  # fmt: skip
    assert after(Era.NOTIFIER, ALONE, OPEN, UNBIND).probes == ("UNBIND_DRIVER", "UNBOUND_DRIVER")
    assert after(Era.DMA_OWNER, ALONE, OPEN, UNBIND).probes == ()


def test_the_node_goes_with_the_last_member_or_up_to_5_18_with_its_fd() -> None:
    remove = ExpectedUevent("vfio", "remove")
    assert remove in after(Era.DMA_OWNER, ALONE, OPEN, UNBIND).uevents
    assert remove not in after(Era.NOTIFIER, ALONE, OPEN, UNBIND).uevents
    assert after(Era.NOTIFIER, ALONE, OPEN, UNBIND, CLOSE).uevents == (remove,)


def test_a_cdev_and_its_group_exclude_each_other() -> None:
    cdev = Operation(Kind.OPEN_CDEV)
    bind, attach = Operation(Kind.BIND_IOMMUFD), Operation(Kind.ATTACH_IOMMUFD_PT)
    assert after(Era.CDEV, ALONE, cdev, OPEN, bind).errno == errno.EBUSY
    assert after(Era.CDEV, ALONE, cdev, bind, OPEN).errno == errno.EBUSY
    assert after(Era.CDEV, ALONE, cdev, attach).errno == errno.EINVAL
    assert after(Era.CDEV, ALONE, cdev, bind, bind).errno == errno.EINVAL
    assert after(Era.CDEV, ALONE, cdev, bind, attach).errno == 0
    assert after(Era.CDEV, BESIDE_HOST, cdev, bind).errno == errno.EPERM
    host = Operation(Kind.BIND, member=1, to=Bound.HOST)
    assert after(Era.CDEV, BESIDE_NONE, cdev, bind, host).errno == errno.EBUSY
    assert after(Era.CDEV, ALONE, cdev, bind, UNBIND).waits_for == "its fds are closed"


# Invariants of every state


def steps(era: Era, most_fds: int = 1) -> Iterator[tuple[State, Operation, Prediction]]:
    """All operations in all reachable states of a group with two members and a container."""
    start = State((Member(), Member()), (ContainerState(),))

    def follows(_operation: Operation, prediction: Prediction) -> bool:
        """An operation that waits leads only to states that closing first, and unbinding then, reaches."""
        return not (prediction.crash or prediction.waits_for) and prediction.state.device_fds <= most_fds

    return explore(model(era), start, follows)


@pytest.mark.parametrize("era", ERAS)
def test_invariants_in_every_state(era: Era) -> None:
    rules = model(era)
    visited = set[State]()
    for state, operation, prediction in steps(era):
        visited.add(state)
        if prediction.errno:
            assert (prediction.state, prediction.uevents) == (state, ())
        if prediction.crash or prediction.waits_for:
            continue
        after = prediction.state
        if rules.era.has_dma_owner:
            assert not (after.is_live and after.on(Bound.HOST)), str(operation)
            assert owners(after) - owners(state) == claims(prediction), (state, str(operation))
        nodes = [event.action for event in prediction.uevents if event.subsystem == "vfio"]
        moved = rules.has_node(after) - rules.has_node(state)
        assert nodes == {1: ["add"], 0: [], -1: ["remove"]}[moved], str(operation)
        assert all(member.bound is Bound.VFIO for member in after.members if member.fds or member.cdev)
        assert after.container is not None or not any(one.has_iommu for one in after.containers)
    assert len(visited) > 100


def owners(state: State) -> int:
    """Return the number of owners of the group's DMA, in the kernel and in userspace."""
    iommufds = sum(member.has_iommufd for member in state.members)
    return (state.container is not None) + iommufds + state.on(Bound.HOST)


def claims(prediction: Prediction) -> int:
    """Return the change of the number of owners by the functions that ran and succeeded."""
    if prediction.errno:
        return 0
    more = sum("claim" in name or name.endswith("_use_default_domain") for name in prediction.probes)
    return more - sum("release" in name or "_unuse_" in name for name in prediction.probes)


@pytest.mark.parametrize("era", ERAS)
def test_every_state_can_be_closed(era: Era) -> None:
    for state in {state for state, _, _ in steps(era)}:
        now = state
        while closing := [one for one in model(era).operations(now) if one.kind in CLOSES]:
            now = model(era).predict(now, closing[0]).state
        assert not now.is_open
        assert not now.is_live
        assert now.device_fds == 0
        assert [member.bound for member in now.members] == [member.bound for member in state.members]


# Walks


def walked(era: Era, seed: int, count: int) -> list[tuple[State, Operation, Prediction]]:
    walk = Walk(model(era), BESIDE_HOST, seed)
    return [(walk.state, operation, prediction) for operation, prediction in walk.steps(count)]


@pytest.mark.parametrize("era", ERAS)
def test_the_same_seed_gives_the_same_walk(era: Era) -> None:
    assert walked(era, 7, 300) == walked(era, 7, 300)
    assert walked(era, 7, 300) != walked(era, 8, 300)


@pytest.mark.parametrize("era", ERAS)
def test_a_walk_reaches_all_kinds_and_crashes_no_machine(era: Era) -> None:
    done = walked(era, 1, 4000)
    kinds = {operation.kind for _, operation, prediction in done if not prediction.errno}
    cdevs = {Kind.OPEN_CDEV, Kind.BIND_IOMMUFD, Kind.ATTACH_IOMMUFD_PT, Kind.CLOSE_CDEV}
    assert kinds == set(Kind) - (set() if era is Era.CDEV else cdevs)
    assert any(prediction.waits_for for _, _, prediction in done)
    assert not any(prediction.crash for _, _, prediction in done)
    assert max(state.device_fds for state, _, _ in done) == 3


def test_a_walk_binds_only_to_given_drivers() -> None:
    walk = Walk(model(Era.DMA_OWNER), ALONE, 1, to=[Bound.VFIO])
    assert {operation.to for operation, _ in islice(walk.steps(500), 500)} == {Bound.NONE, Bound.VFIO}


# The guide


@pytest.mark.parametrize("era", [Era.NOTIFIER, Era.DMA_OWNER])
def test_the_guide_has_the_diagram_of_the_model(era: Era) -> None:
    assert f"```mermaid\n{draw(model(era))}```\n" in GUIDE.read_text(encoding="utf-8")
