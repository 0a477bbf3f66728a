"""Kernels by name: what needs no apt (with it: test_lab_apt.py)."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

import pytest

from vfiotool.errors import LabError, SelectorError
from vfiotool.lab import apt, cache, kernels


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(kernels, "BOOT", str(tmp_path / "boot"))
    return tmp_path


def cached(name: str, release: str) -> str:
    """Put a kernel into the cache and return its root."""
    root = Path(cache.directory("kernels", release))
    (root / "boot").mkdir(parents=True)
    (root / "boot" / f"vmlinuz-{release}").write_bytes(b"image")
    (root / "lib/modules" / release).mkdir(parents=True)
    (root / "lib/modules" / release / "modules.dep").write_text("")
    manifest = {"name": name, "release": release, "suite": "trixie", "packages": {}, "root": str(root)}
    cache.write_json(cache.directory("kernels", f"{name}.json"), manifest)
    return str(root)


# Oldest first; the Debian ones were confirmed with dpkg --compare-versions below.
RELEASES = [
    "5.10.0-9-amd64",
    "5.10.0-46-amd64",
    "6.1.0-0.deb11.25-amd64",
    "6.1.0-9-amd64",
    "6.1.0-50-amd64",
    "6.12.9+deb13-amd64",
    "6.12.90+deb12-amd64",
    "6.12.117+deb12-amd64",
    "6.12.117+deb13-amd64",
    "7.2~rc3-amd64",
    "7.2.12+deb14-amd64",
    "7.10.1+deb14-amd64",
]


def test_releases_are_ordered_by_version() -> None:
    # The order by name differs, so that the sort is tested.
    assert sorted(sorted(RELEASES), key=kernels.release_key) == RELEASES != sorted(RELEASES)


@pytest.mark.skipif(not os.path.exists("/usr/bin/dpkg"), reason="dpkg is not on this machine")
def test_dpkg_orders_debian_releases_the_same_way() -> None:
    for older, newer in itertools.pairwise(RELEASES):
        subprocess.run(["dpkg", "--compare-versions", older, "lt", newer], check=True)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("6.18.0-rc3", "6.18.0"),
        ("6.18.0-rc3-00012-gabcdef", "6.18.0-rc4"),
        ("6.18.0", "6.18.44-fc-v657"),
        ("6.8.0-31-generic", "6.8.0-100-generic"),
        ("not-a-number", "2.6.32"),
        ("6.1.0_own build", "6.1.1"),
    ],
)
def test_releases_of_any_origin_can_be_compared(older: str, newer: str) -> None:
    assert kernels.release_key(older) < kernels.release_key(newer)


def test_the_error_for_an_unknown_name_has_the_known_names() -> None:
    with pytest.raises(SelectorError, match=r"'4\.19'") as caught:
        kernels.get("4.19")
    assert "5.10, 6.1, 6.12, 7, debug" in caught.value.hint
    assert caught.value.exit_status == 2


def test_a_cached_kernel_is_found_and_listed() -> None:
    root = cached("6.12", "6.12.9+deb13-amd64")

    image = f"{root}/boot/vmlinuz-6.12.9+deb13-amd64"
    assert kernels.get("6.12") == kernels.Kernel("6.12", "6.12.9+deb13-amd64", image, root)
    listed = {entry.name: entry for entry in kernels.available()}
    assert tuple(listed) == kernels.NAMES
    assert listed["6.12"] == kernels.Availability("6.12", "6.12.9+deb13-amd64", True, root, "trixie")
    assert listed["5.10"] == kernels.Availability("5.10", None, False, None, "bullseye-security")


@pytest.fixture
def tree(home: Path) -> Path:
    """A kernel as scripts/build-kernel builds it, not yet moved into the cache."""
    made = home / "tree"
    (made / "boot").mkdir(parents=True)
    (made / "boot/vmlinuz-6.12.9-debug-1").write_bytes(b"built")
    (made / "lib/modules/6.12.9-debug-1").mkdir(parents=True)
    (made / "lib/modules/6.12.9-debug-1/modules.dep").write_text("")
    Path(cache.directory("kernels")).mkdir(parents=True)
    return made


@pytest.mark.parametrize("refresh", [False, True])
def test_the_error_for_an_unbuilt_kernel_says_how_to_build_it(refresh: bool) -> None:
    with pytest.raises(LabError, match="'debug' has not been built") as caught:
        kernels.get("debug", refresh=refresh)
    assert "scripts/build-kernel" in caught.value.hint
    assert kernels.available()[-1] == kernels.Availability("debug", None, False, None, "scripts/build-kernel")


@pytest.mark.parametrize("refresh", [False, True])
def test_a_built_kernel_is_moved_into_the_cache_and_named(tree: Path, refresh: bool) -> None:
    kernels.add_built(str(tree), "6.12.9-debug-1", "6.12.9-1")

    root = cache.directory("kernels", "6.12.9-debug-1")
    kernel = kernels.get("debug", refresh=refresh)
    assert kernel == kernels.Kernel("debug", "6.12.9-debug-1", f"{root}/boot/vmlinuz-6.12.9-debug-1", root)
    assert Path(kernel.image).read_bytes() == b"built"
    assert kernels.available()[-1] == kernels.Availability(
        "debug", "6.12.9-debug-1", True, root, "scripts/build-kernel"
    )
    assert not tree.exists()


def test_a_rebuilt_kernel_replaces_the_first(tree: Path) -> None:
    first = Path(cache.directory("kernels", "6.12.9-debug-1"))
    first.mkdir()
    (first / "of the first").touch()

    kernels.add_built(str(tree), "6.12.9-debug-1", "6.12.9-2")

    assert sorted(entry.name for entry in first.iterdir()) == ["boot", "lib"]
    assert sorted(os.listdir(cache.directory("kernels"))) == ["6.12.9-debug-1", "debug.json"]


@pytest.mark.parametrize("lacking", ["boot/vmlinuz-6.12.9-debug-1", "lib/modules/6.12.9-debug-1/modules.dep"])
def test_an_incomplete_build_is_refused(tree: Path, lacking: str) -> None:
    (tree / lacking).unlink()
    with pytest.raises(LabError, match="lacks the image or the modules"):
        kernels.add_built(str(tree), "6.12.9-debug-1", "6.12.9-1")
    assert os.listdir(cache.directory("kernels")) == []


@pytest.mark.parametrize("damage", ["boot/vmlinuz-{}", "lib/modules/{}/modules.dep"])
def test_a_damaged_kernel_does_not_count_as_cached(damage: str) -> None:
    root = cached("6.12", "6.12.9+deb13-amd64")
    os.unlink(os.path.join(root, damage.format("6.12.9+deb13-amd64")))
    assert not any(entry.cached for entry in kernels.available())


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": "6.12"}', '{"other": 1}'])
def test_a_damaged_manifest_does_not_count_as_cached(text: str) -> None:
    cached("6.12", "6.12.9+deb13-amd64")
    Path(cache.directory("kernels", "6.12.json")).write_text(text)
    assert not any(entry.cached for entry in kernels.available())


@pytest.mark.parametrize("newer", [True, False])
def test_host_follows_a_newly_installed_kernel(
    home: Path, monkeypatch: pytest.MonkeyPatch, newer: bool
) -> None:
    cached("host", "6.12.90+deb12-amd64")
    given = "6.12.91+deb12-amd64" if newer else "6.12.9+deb12-amd64"
    (home / "boot").mkdir()
    (home / "boot" / f"vmlinuz-{given}").write_bytes(b"")
    monkeypatch.setattr(kernels._Manifest, "is_whole", lambda manifest: True)

    assert kernels.get("host").release == (given if newer else "6.12.90+deb12-amd64")


def test_a_boot_image_without_its_modules_is_no_kernel(home: Path) -> None:
    (home / "boot").mkdir()
    (home / "boot/vmlinuz-0.0.1-none").write_bytes(b"")
    assert kernels._installed() == []


def test_a_cache_that_cannot_be_written_is_an_error_with_a_hint(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    with pytest.raises(LabError, match="Not a directory") as caught:
        kernels.get("6.12")
    assert "XDG_CACHE_HOME" in caught.value.hint


def test_a_relative_cache_directory_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache.directory("x") == "/home/someone/.cache/vfiotool/x"


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        ("E: Write error - write (28: No space left on device)", "XDG_CACHE_HOME"),
        ("W: Failed to fetch x  Temporary failure resolving 'x'", "network"),
        ("E: The repository 'x' does not have a Release file.", "another kernel"),
        ("W: GPG error: x InRelease: NO_PUBKEY 1", "debian-archive-keyring"),
        ("E: something else", "apt-get update"),
    ],
)
def test_an_error_of_apt_becomes_a_cause_and_a_hint(output: str, hint: str) -> None:
    error = apt._error("apt failed", f"Reading...\n{output}\nE: Some files failed\n")
    assert error.message == f"apt failed: {output[3:]}"
    assert hint in error.hint
