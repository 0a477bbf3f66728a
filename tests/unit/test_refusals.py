from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click
import pytest

from vfiotool.binding.plan import make_plan
from vfiotool.cli.root import cli
from vfiotool.errors import VfioToolError
from vfiotool.host import plan_context
from vfiotool.host.denylist import OWNERS_LIST
from vfiotool.host.device_state import DeviceState
from vfiotool.host.devices import read_devices
from vfiotool.host.era import Era
from vfiotool.host.holders import Holder
from vfiotool.host.plan_context import PlanContext, read_plan_context
from vfiotool.host.refusals import LIFTABLE_RULES, PlanRefusedError, Refusal, refusals
from vfiotool.host.usage.claim import Claim
from vfiotool.host.usage.device_usage import Usage
from vfiotool.host.usage.namespaces import NAMESPACE_ALONE
from vfiotool.pci.names import PciNames
from vfiotool.testing import FakeHost
from vfiotool.testing.fake_tree import FakeTree

NIC, IDLE, BRIDGE, ALONE = "0000:00:12.0", "0000:00:13.0", "0000:00:14.0", "0000:00:15.0"
HOLDER = Holder(9, "qemu", 3, "/dev/vfio/1")
MOUNTED = Usage("block", "sda1", "", (Claim("mounted", "is mounted on /srv"), Claim("swap", "is swapped to")))
UP = Usage("net", "eth0", "", (Claim("network", "is up with 192.0.2.9/24"),))
VGA = Usage("display", NIC, "", (Claim("vga", "is the graphics card"),))
TO_VFIO, TO_NONE, TO_HOST = (
    DeviceState("vfio-pci", "vfio-pci"),
    DeviceState(None, None),
    DeviceState("nvme", None),
)
OLD = [Era.DEFERRED_PUT, Era.NOTIFIER]


@pytest.fixture
def context(host: FakeHost) -> PlanContext:
    """A NIC on its driver and a device without a driver, in one group with a bridge; and a device alone."""
    host.add_device(NIC, driver="e1000e", group=1)
    host.add_device(IDLE, group=1)
    host.add_device(BRIDGE, class_code=0x060400, driver="pcieport", group=1)
    host.add_device(ALONE, driver="other", group=2)
    seen = look(host, NIC, ALONE)
    return replace(seen, loaded_drivers=frozenset({"vfio-pci", "e1000e", "nvme", "other"}))


def look(host: FakeTree, *wanted: str) -> PlanContext:
    return read_plan_context(host.tree, read_devices(host.tree, sorted(host.devices), PciNames(b"")), wanted)


def used(context: PlanContext, address: str, *usage: Usage) -> PlanContext:
    return replace(context, usage={address: usage})


def changed(context: PlanContext, address: str, **fields: Any) -> PlanContext:
    return replace(context, devices={**context.devices, address: replace(context.devices[address], **fields)})


def held(context: PlanContext, era: Era, *holders: Holder) -> PlanContext:
    groups = {**context.groups, 1: replace(context.groups[1], holders=holders)}
    return replace(context, groups=groups, open_groups=frozenset({1}), era=era)


def rules(found: Sequence[Refusal]) -> list[tuple[str, str, str | None]]:
    return [(one.address, one.rule, one.flag) for one in found]


def test_unused_device_is_not_refused(context: PlanContext) -> None:
    for state in (TO_VFIO, TO_NONE, TO_HOST):
        assert refusals(context, {NIC: state, ALONE: state}) == ()


@pytest.mark.parametrize("state", [TO_VFIO, TO_NONE, TO_HOST], ids=["vfio", "none", "another"])
def test_each_use_of_a_device_has_a_rule_that_can_be_lifted(context: PlanContext, state: DeviceState) -> None:
    context = used(context, NIC, MOUNTED, UP, VGA)
    assert [(one.rule, one.flag, one.reason) for one in refusals(context, {NIC: state})] == [
        ("mounted", "--allow-mounted", "its disk sda1 is mounted on /srv"),
        ("swap", "--allow-swap", "its disk sda1 is swapped to"),
        ("network", "--allow-network", "its network interface eth0 is up with 192.0.2.9/24"),
        ("vga", "--allow-vga", "it is the graphics card"),
    ]
    lifted = replace(context, allowed=frozenset({"mounted", "vga", "network"}))
    assert rules(refusals(lifted, {NIC: state})) == [(NIC, "swap", "--allow-swap")]
    assert refusals(replace(context, allowed=frozenset(LIFTABLE_RULES)), {NIC: state}) == ()


def test_device_that_stays_on_its_driver_is_not_refused(context: PlanContext) -> None:
    context = used(changed(context, NIC, vfs=("0000:00:12.1",)), NIC, UP)
    assert refusals(context, {NIC: DeviceState("e1000e", "e1000e")}) == ()


def test_bridge_is_always_refused(context: PlanContext) -> None:
    for state in (TO_VFIO, DeviceState("pcieport", "pcieport")):
        context = replace(context, allowed=frozenset({"bridge", *LIFTABLE_RULES}))
        assert rules(refusals(context, {BRIDGE: state})) == [(BRIDGE, "bridge", None)]


@pytest.mark.parametrize(
    ("state", "flag"),
    [
        (TO_VFIO, None),
        (replace(TO_VFIO, numvfs=1), None),
        (TO_NONE, "--allow-vfs"),
        (TO_HOST, "--allow-vfs"),
    ],
)
def test_pf_with_vfs_is_refused(context: PlanContext, state: DeviceState, flag: str | None) -> None:
    context = changed(context, NIC, vfs=("0000:00:12.1",))
    assert rules(refusals(context, {NIC: state})) == [(NIC, "vfs", flag)]
    lifted = refusals(replace(context, allowed=frozenset({"vfs"})), {NIC: state})
    assert rules(lifted) == ([] if flag else [(NIC, "vfs", None)])


# The whole group


def test_use_of_a_sibling_refuses_a_bind_to_vfio(context: PlanContext) -> None:
    context = used(context, NIC, UP)
    (one,) = refusals(context, {IDLE: TO_VFIO})
    assert (one.address, one.rule, one.flag) == (NIC, "network", "--allow-network")
    assert one.reason == (
        "its network interface eth0 is up with 192.0.2.9/24; it shares group 1 with 0000:00:13.0, "
        "and the group goes to userspace as a whole"
    )
    assert refusals(context, {IDLE: TO_HOST}) == ()
    assert refusals(context, {ALONE: TO_VFIO}) == ()


def test_sibling_that_is_named_too_is_refused_once(context: PlanContext) -> None:
    found = refusals(used(context, NIC, UP), {IDLE: TO_VFIO, NIC: TO_VFIO})
    assert [(one.address, one.reason) for one in found] == [
        (NIC, "its network interface eth0 is up with 192.0.2.9/24")
    ]


@pytest.mark.parametrize("driver", ["vfio-pci", None], ids=["on vfio", "without a driver"])
def test_sibling_without_a_host_driver_is_ignored(context: PlanContext, driver: str | None) -> None:
    context = changed(used(context, NIC, VGA), NIC, driver=driver)
    assert refusals(context, {IDLE: TO_VFIO}) == ()


# A group that is in use


@pytest.mark.parametrize("era", Era)
@pytest.mark.parametrize(
    ("now", "state", "old", "new"),
    [
        ("vfio-pci", TO_HOST, "live-group", "held"),
        (None, TO_HOST, "live-group", "held"),
        ("vfio-pci", TO_NONE, "held", "held"),
        ("vfio-pci", DeviceState("pci-stub", None), "held", "held"),
        (None, DeviceState("pci-stub", None), None, None),
        (None, TO_VFIO, None, None),
        ("vfio-pci", DeviceState("mlx5_vfio_pci", None), "held", "held"),
    ],
)
def test_device_of_a_group_in_use_is_refused(
    context: PlanContext, era: Era, now: str | None, state: DeviceState, old: str | None, new: str | None
) -> None:
    context = changed(held(context, era, HOLDER), IDLE, driver=now)
    rule = old if era in OLD else new
    flag = "--allow-held" if rule == "held" else None
    found = refusals(context, {IDLE: state})
    assert rules(found) == ([] if rule is None else [(IDLE, rule, flag)])
    assert all("group 1 is in use by pid 9 (qemu)" in one.reason for one in found)


def test_unknown_holder_of_a_group_refuses_too(context: PlanContext) -> None:
    (one,) = refusals(held(context, Era.DEFERRED_PUT), {IDLE: TO_HOST})
    assert (one.rule, "by an unknown process" in one.reason) == ("live-group", True)


@pytest.mark.parametrize("era", Era)
def test_module_that_could_bind_in_a_live_group_is_refused(context: PlanContext, era: Era) -> None:
    """Up to 5.18 the driver probes each device without a driver, and may serve the one in the live group."""
    context = changed(replace(context, loaded_drivers=frozenset({"vfio-pci"})), BRIDGE, driver=None)
    context = held(context, era, HOLDER)
    found = refusals(context, {ALONE: TO_HOST})
    assert rules(found) == ([(ALONE, "live-group", None)] if era in OLD else [])
    assert all(f"could bind {IDLE}" in one.reason for one in found)
    assert refusals(context, {ALONE: TO_VFIO}) == ()
    aside = changed(context, IDLE, driver_override="vfio-pci")
    assert refusals(aside, {ALONE: TO_HOST}) == ()
    named = changed(context, IDLE, driver_override="nvme")
    assert rules(refusals(named, {ALONE: TO_HOST})) == rules(found)


def test_all_groups_are_read_on_old_kernels(host: FakeHost, old_host: FakeHost) -> None:
    for one, groups in ((host, {1}), (old_host, {1, 2})):
        one.add_device(NIC, group=1)
        one.add_device(ALONE, driver="vfio-pci", group=2)
        one.block(ALONE)
        context = look(one, NIC)
        assert context.groups.keys() == groups
        assert context.open_groups == groups - {1}


# What cannot be known


@pytest.mark.parametrize("era", Era)
def test_a_group_whose_use_cannot_be_known_counts_as_in_use(context: PlanContext, era: Era) -> None:
    known = held(changed(context, NIC, driver="vfio-pci"), era, HOLDER)
    unseen = replace(known, open_groups=frozenset(), unseen_groups={1: "its node is elsewhere"})
    for targets in ({NIC: TO_VFIO}, {NIC: TO_NONE}, {NIC: TO_HOST}, {ALONE: TO_HOST}):
        for loaded in (context.loaded_drivers, frozenset[str]()):
            found = refusals(replace(unseen, loaded_drivers=loaded), targets)
            assert rules(found) == rules(refusals(replace(known, loaded_drivers=loaded), targets))
            assert all("group 1" in one.reason for one in found)
            assert all("may be in use (its node is elsewhere)" in one.reason for one in found)


def test_a_group_is_unknown_if_its_node_is_out_of_sight(host: FakeHost) -> None:
    host.add_device(NIC, driver="vfio-pci", group=1)
    assert look(host, NIC).unseen_groups == {}
    host.remove("/dev/vfio/1")  # a container with a /dev of its own
    assert look(host, NIC).unseen_groups == {}
    host.put("/sys/class/vfio/1/dev", "240:0")
    assert look(host, NIC).unseen_groups == {1: "/dev/vfio/1 is not in sight here"}
    host.set_driver(NIC, None)
    assert look(host, NIC).unseen_groups == {}


@pytest.mark.parametrize("answer", [True, False, None])
def test_a_group_is_unknown_if_its_node_does_not_open(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, answer: bool | None
) -> None:
    host.add_device(NIC, driver="vfio-pci", group=1)
    monkeypatch.setattr(plan_context, "is_group_open", lambda _: answer)
    found = look(host, NIC)
    assert (1 in found.open_groups, 1 in found.unseen_groups) == (answer is True, answer is None)


def test_a_container_is_told_that_it_has_a_denylist_of_its_own(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.add_device(NIC, driver="e1000e", group=1)
    assert look(host, NIC).unseen == ()
    monkeypatch.setattr(plan_context, "why_processes_are_hidden", lambda _: NAMESPACE_ALONE)
    (text,) = look(host, NIC).unseen
    assert OWNERS_LIST in text
    plan = make_plan(look(host, NIC), {NIC: DeviceState("e1000e", None)}, {NIC: TO_VFIO})
    assert text in plan.warnings


# Denylists


@pytest.mark.parametrize(
    ("device", "named"), [(0x37C9, "QAT"), (0x0B25, "DSA"), (0x0CFE, "IAX"), (0x10D3, None)]
)
def test_kernel_denylist_refuses_a_bind_to_vfio(host: FakeHost, device: int, named: str | None) -> None:
    host.add_device(NIC, vendor=0x8086, device=device, driver="x", group=1)
    found = refusals(look(host, NIC), {NIC: TO_VFIO})
    assert rules(found) == ([(NIC, "denylist", "--allow-denylist")] if named else [])
    assert all(f"keeps {named} devices" in one.reason and "disable_denylist=1" in one.reason for one in found)
    assert refusals(look(host, NIC), {NIC: TO_NONE}) == ()
    host.put("/sys/module/vfio_pci/parameters/disable_denylist", "Y")
    assert refusals(look(host, NIC), {NIC: TO_VFIO}) == ()


def test_owners_denylist_refuses_all_but_giving_back(host: FakeHost) -> None:
    host.add_device(NIC, driver="e1000e", group=1)
    host.add_device(ALONE, driver="e1000e", group=2)
    host.put(OWNERS_LIST, f"# mine\n\nffff:ffff\n{NIC}   # the uplink")
    for state in (TO_VFIO, TO_NONE, TO_HOST):
        (one,) = refusals(look(host, NIC, ALONE), {NIC: state, ALONE: state})
        assert (one.address, one.rule, one.reason) == (NIC, "denylist", f"'{NIC}' in {OWNERS_LIST} names it")
    host.set_driver(NIC, "vfio-pci")
    assert refusals(look(host, NIC), {NIC: DeviceState("e1000e", None)}) == ()


def test_denylist_that_cannot_be_parsed_refuses_everything(host: FakeHost) -> None:
    host.add_device(NIC, driver="e1000e", group=1)
    host.put(OWNERS_LIST, "00:zz.0")
    with pytest.raises(VfioToolError, match=r"'00:zz\.0' is not a valid ADDRESS") as broken:
        look(host, NIC)
    assert OWNERS_LIST in str(broken.value)
    assert broken.value.hint


# Texts


@pytest.mark.parametrize("verb", ["bind", "unbind", "restore", "recover", "sriov"])
def test_each_rule_has_an_option(verb: str) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    said = {one.opts[0]: one.help for one in command.params if isinstance(one, click.Option)}
    assert {f"--allow-{rule}": text for rule, text in LIFTABLE_RULES.items()}.items() <= said.items()


def test_hint_names_each_option_once(context: PlanContext) -> None:
    both = replace(context, usage={NIC: (MOUNTED,), ALONE: (MOUNTED,)})
    error = PlanRefusedError(refusals(both, {NIC: TO_NONE, ALONE: TO_NONE}))
    assert error.hint == "to do it anyway, add --allow-mounted --allow-swap"
    assert str(error).startswith(f"refused: {NIC}: its disk sda1 is mounted on /srv; {NIC}: its disk")


def test_hint_says_if_no_option_lifts_the_rule(context: PlanContext) -> None:
    assert PlanRefusedError(refusals(context, {BRIDGE: TO_NONE})).hint == "no option lifts this"
    error = PlanRefusedError(refusals(used(context, NIC, UP), {BRIDGE: TO_NONE, NIC: TO_NONE}))
    assert error.hint == f"no option lifts this for {BRIDGE}"


def test_reason_is_a_single_line(context: PlanContext) -> None:
    odd = Usage("block", "sda1", "", (Claim("mounted", "is mounted on /a\nb\x1b[2J"),))
    (one,) = refusals(used(context, NIC, odd), {NIC: TO_NONE})
    assert one.reason == "its disk sda1 is mounted on /a?b?[2J"
    live = held(context, Era.DEFERRED_PUT, replace(HOLDER, comm="a\nb"))
    assert "(a?b)" in refusals(live, {IDLE: TO_HOST})[0].reason
