"""Owners and their udev rules: exact, never world-writable, and removed if they have no effect."""

from __future__ import annotations

import os
import stat

import pytest

from vfiotool.binding import ownership, udevadm
from vfiotool.binding.ownership import Owner, parse_owner
from vfiotool.errors import SelectorError, UnsupportedError, VfioToolError
from vfiotool.testing import FakeHost

EDU, NIC, SISTER = "0000:00:10.0", "0000:00:12.0", "0000:00:12.1"
ME = Owner(os.getuid(), os.getgid())


@pytest.fixture(autouse=True)
def machine(host: FakeHost) -> FakeHost:
    host.add_device(EDU, group=5)
    for address in (NIC, SISTER):
        host.add_device(address, vendor=0x8086, device=0x10D3, group=7)
    return host


@pytest.fixture(autouse=True)
def asked_of_udevadm(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The calls of udevadm, none of which is executed."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(udevadm, "_run", lambda *arguments: asked.append(arguments))
    return asked


def rules(host: FakeHost) -> dict[str, str]:
    names = host.tree.find_names(ownership.RULES_DIR)
    return {name: host.tree.read(f"{ownership.RULES_DIR}/{name}") for name in names}


def put_node(host: FakeHost, group: int, mode: int) -> str:
    """Create a group's node as udevd would, and return its path."""
    host.put(f"/sys/class/vfio/{group}/dev", "244:0")
    host.put(f"/dev/vfio/{group}", "")
    node = host.tree.path(f"/dev/vfio/{group}")
    os.chmod(node, mode)
    return node


def test_owner_is_a_name_or_a_number() -> None:
    assert parse_owner("root") == parse_owner("0") == Owner(0)
    assert parse_owner("root:root") == parse_owner("0:0") == Owner(0, 0)


@pytest.mark.parametrize("owner", [Owner(0), Owner(0, 0)])
def test_owner_as_text_parses_to_the_same_owner(owner: Owner) -> None:
    assert parse_owner(str(owner)) == owner


@pytest.mark.parametrize(
    "text",
    ["", ":", "root:", ":root", "no-such-user", "root:no-such-group", "-1", "4294967296", "9" * 99, "a\0"],
)
def test_unknown_owner_is_a_usage_error(text: str) -> None:
    with pytest.raises(SelectorError, match="there is no") as caught:
        parse_owner(text)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(("owner", "mode"), [(Owner(7), 0o600), (Owner(7, 8), 0o660), (Owner(0, 0), 0o660)])
def test_mode_gives_no_access_to_others(host: FakeHost, owner: Owner, mode: int) -> None:
    assert owner.mode == mode
    ownership.grant(host.tree, EDU, owner)
    (text,) = rules(host).values()
    assert text.count(f'MODE:="0{mode:o}"') == text.count("MODE") == 2
    assert ownership.owner_of(host.tree, EDU) == owner


def test_rule_matches_the_group_by_its_device(
    host: FakeHost, asked_of_udevadm: list[tuple[str, ...]]
) -> None:
    ownership.grant(host.tree, EDU, Owner(7, 8))
    assert list(rules(host)) == [f"90-vfiotool-owner-{EDU}.rules"]
    (text,) = rules(host).values()
    assert (
        f'SUBSYSTEM=="vfio", TEST=="/sys/kernel/iommu_groups/%k/devices/{EDU}", OWNER:="7", GROUP:="8"'
        in text
    )
    assert f'SUBSYSTEM=="vfio-dev", KERNELS=="{EDU}", OWNER:="7", GROUP:="8"' in text
    assert asked_of_udevadm == [("control", "--reload")] * 3  # udevd may not hear one
    ownership.revoke(host.tree, EDU)
    assert rules(host) == {}


def test_existing_node_is_changed_and_verified(
    host: FakeHost, asked_of_udevadm: list[tuple[str, ...]]
) -> None:
    put_node(host, 5, 0o660)
    ownership.grant(host.tree, EDU, ME)
    device = host.tree.path("/sys/class/vfio/5")
    triggers = [one for one in asked_of_udevadm if one[0] == "trigger"]
    assert triggers == [("trigger", "--settle", "--action=change", device)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take a node back")
def test_rule_without_effect_is_removed(host: FakeHost) -> None:
    node = put_node(host, 5, 0o666)
    with pytest.raises(VfioToolError, match="udevd did not give /dev/vfio/5 to its owner"):
        ownership.grant(host.tree, EDU, ME)
    assert rules(host) == {}
    assert stat.S_IMODE(os.stat(node).st_mode) == 0o600


def test_machine_without_udevd_is_unsupported(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: str) -> None:
        raise VfioToolError("it does not answer")

    monkeypatch.setattr(udevadm, "_run", refuse)
    with pytest.raises(UnsupportedError, match="no udevd runs here"):
        ownership.grant(host.tree, EDU, ME)
    assert rules(host) == {}


def test_group_has_one_owner(host: FakeHost) -> None:
    ownership.grant(host.tree, NIC, Owner(7))
    with pytest.raises(VfioToolError, match=f"{NIC} is granted to another owner"):
        ownership.grant(host.tree, SISTER, Owner(8))
    ownership.grant(host.tree, SISTER, Owner(7))
    assert len(rules(host)) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take a node back")
def test_node_is_roots_again_after_the_last_grant_of_its_group(host: FakeHost) -> None:
    node = put_node(host, 7, 0o660)
    for address in (NIC, SISTER):
        ownership.grant(host.tree, address, ME)
    ownership.revoke(host.tree, NIC)
    assert stat.S_IMODE(os.stat(node).st_mode) == 0o660
    ownership.revoke(host.tree, SISTER)
    assert stat.S_IMODE(os.stat(node).st_mode) == 0o600


def test_revoke_without_a_grant_has_no_effect(
    host: FakeHost, asked_of_udevadm: list[tuple[str, ...]]
) -> None:
    node = put_node(host, 5, 0o640)
    ownership.revoke(host.tree, EDU)
    assert stat.S_IMODE(os.stat(node).st_mode) == 0o640
    assert asked_of_udevadm == []


@pytest.mark.parametrize("change", [("0660", "0666"), ('OWNER:="7"', 'OWNER:="0"'), ("7:8", "seven")])
def test_changed_rule_is_an_error(host: FakeHost, change: tuple[str, str]) -> None:
    ownership.grant(host.tree, EDU, Owner(7, 8))
    (name,) = rules(host)
    path = f"{ownership.RULES_DIR}/{name}"
    host.put(path, host.tree.read(path).replace(*change))
    with pytest.raises(VfioToolError, match="is not as vfiotool wrote it"):
        ownership.owner_of(host.tree, EDU)
    ownership.revoke(host.tree, EDU)
    assert rules(host) == {}


def test_symbolic_link_in_place_of_the_rule_is_refused(host: FakeHost) -> None:
    os.makedirs(host.tree.path(ownership.RULES_DIR))
    os.symlink("/etc/hostname", host.tree.path(f"{ownership.RULES_DIR}/90-vfiotool-owner-{EDU}.rules"))
    with pytest.raises(VfioToolError, match="not vfiotool's own"):
        ownership.grant(host.tree, EDU, ME)
