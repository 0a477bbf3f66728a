"""Kernels by name: fetched with apt, unpacked into the user's cache, never installed; one is built.

``<cache>/kernels/<release>/`` holds ``boot/vmlinuz-<release>`` and ``lib/modules/<release>``, and appears
in one step when it is whole. ``<cache>/kernels/<name>.json`` says which release a name stands for; as
long as it does, no network and no apt is needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from vfiotool.errors import LabError, SelectorError, UnsupportedError
from vfiotool.lab import cache

if TYPE_CHECKING:
    from vfiotool.lab.apt import Apt, AptSource, FetchProgress

BUILT, BUILT_FROM = "debug", "6.12"
"""The kernel that ``scripts/build-kernel`` builds, and the one whose source package it builds it from."""
NAMES = ("host", "5.10", "6.1", "6.12", "7", BUILT)
BOOT = "/boot"

_BUILDER = "scripts/build-kernel"

# Where each kernel is: (label of the mirror's Release file, suite).
_MAIN, _SECURITY = "Debian", "Debian-Security"
_SUITES = {
    "5.10": ((_SECURITY, "bullseye-security"),),
    "6.1": ((_MAIN, "bookworm"), (_SECURITY, "bookworm-security")),
    "6.12": ((_MAIN, "trixie"), (_SECURITY, "trixie-security")),
    "7": ((_MAIN, "forky"),),
}

# The plain flavour: neither -cloud, -rt, -unsigned nor -dbg.
_IMAGE = re.compile(r"linux-image-(\d[\w.+~]*(?:-\d[\w.+~]*)?-amd64)")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that can be booted: ``modules_root``/lib/modules/``release`` has its modules."""

    name: str
    release: str
    image: str
    modules_root: str


@dataclass(frozen=True, slots=True)
class Availability:
    """What a name stands for: ``release`` and ``path`` are None until they are known."""

    name: str
    release: str | None
    cached: bool
    path: str | None
    suite: str


@dataclass(frozen=True, slots=True)
class _Manifest:
    """What a name's JSON file says; ``root`` is "/" for the machine's installed kernel."""

    name: str
    release: str
    suite: str
    packages: dict[str, str]
    root: str

    @property
    def kernel(self) -> Kernel:
        image = os.path.join(self.root, "boot", f"vmlinuz-{self.release}")
        return Kernel(self.name, self.release, image, self.root)

    def is_whole(self) -> bool:
        modules = os.path.join(self.root, "lib/modules", self.release, "modules.dep")
        return os.access(self.kernel.image, os.R_OK) and os.path.exists(modules)


def get(name: str, *, progress: FetchProgress | None = None, refresh: bool = False) -> Kernel:
    """Return the kernel of a name, fetching it first if it is not in the cache.

    With ``refresh`` the newest is looked for again, except for BUILT. Safe for several processes and
    threads at once: one fetches, the others wait and find it done. A KeyboardInterrupt passes through,
    with nothing half done and with what was fetched kept. Raises SelectorError for an unknown name,
    UnsupportedError on a machine without apt or not amd64, and LabError for all else (not built, network,
    signatures, disk).
    """
    if name not in NAMES:
        raise SelectorError(f"there is no kernel named '{name}'", hint=f"the names are {', '.join(NAMES)}")
    if (not refresh or name == BUILT) and (known := _cached(name)):
        return known.kernel
    if name == BUILT:
        raise LabError(
            f"kernel '{name}' has not been built",
            hint=f"run {_BUILDER} in a checkout of vfiotool: it takes some minutes, once",
        )
    try:
        with cache.locked(f"kernel-{name}", lambda: _waiting(progress, name)) as lock:
            if not refresh and (known := _cached(name)):
                return known.kernel
            return _fetch(name, lock, progress).kernel
    except OSError as error:
        raise LabError(
            f"cannot keep kernel '{name}' in {cache.directory()}: {error.strerror}",
            hint="let XDG_CACHE_HOME name a directory that you can write to and that has 1 GB free",
        ) from error


def fetch_source(directory: str, progress: FetchProgress | None) -> tuple[str, str]:
    """Fetch the newest source package of kernel BUILT_FROM; return the file's path and its version.

    What an interrupted call left in ``directory`` is continued. Raises as ``get`` does.
    """
    from vfiotool.lab.apt import Apt

    _check_architecture()
    package = f"linux-source-{BUILT_FROM}"
    sources = _sources(BUILT_FROM, _mirrors(BUILT_FROM, progress))
    with cache.locked("source", lambda: _waiting(progress, BUILT)) as lock:
        apt = Apt(cache.directory("apt", "source"), lock, sources)
        apt.update(progress, f"reading the package lists of {_named(sources)}")
        if package not in apt.names(package):
            raise LabError(
                f"{_named(sources)} has no package {package}",
                hint="see whether the mirror is complete",
            )
        (fields,) = apt.show([package])
        wanted = {package: fields["Version"]}
        (path,) = apt.download(wanted, directory, progress, f"downloading {package}")
        cache.remove(apt.directory)
    return path, fields["Version"]


def add_built(tree: str, release: str, version: str) -> None:
    """Move a built kernel into the cache and let BUILT name it; ``version`` is its source's.

    ``tree`` is on the cache's file system, and has what a kernel's folder there has. LabError where it lacks
    the image or the modules. Its caller is the only one that adds.
    """
    root = cache.directory("kernels", release)
    packages = {f"linux-source-{BUILT_FROM}": version}
    if not _Manifest(BUILT, release, _BUILDER, packages, tree).is_whole():
        raise LabError(f"{tree} has no whole kernel {release}", hint=f"run {_BUILDER} again")
    _move_into_place(tree, root)
    cache.write_json(_manifest_path(BUILT), asdict(_Manifest(BUILT, release, _BUILDER, packages, root)))


def available() -> list[Availability]:
    """Return what each name stands for, as far as it is known without asking apt."""
    return [_availability(name) for name in NAMES]


def _availability(name: str) -> Availability:
    if known := _cached(name):
        return Availability(name, known.release, True, known.root, known.suite)
    suites = ", ".join(suite for _label, suite in _SUITES.get(name, ()))
    elsewhere = {"host": "this machine's sources", BUILT: _BUILDER}
    return Availability(name, None, False, None, elsewhere.get(name, suites))


def _waiting(progress: FetchProgress | None, name: str) -> None:
    if progress is not None:
        progress.update(f"waiting for another vfiotool that fetches kernel {name}", None)


def _manifest_path(name: str) -> str:
    return cache.directory("kernels", f"{name}.json")


def _recorded(name: str) -> _Manifest | None:
    value = cache.read_json(_manifest_path(name))
    try:
        manifest = _Manifest(**value) if value else None
    except TypeError:  # written by a version of vfiotool with other fields
        return None
    return manifest if manifest and manifest.is_whole() else None


def _cached(name: str) -> _Manifest | None:
    manifest = _recorded(name)
    if name == "host" and manifest:
        # The machine may have been given a newer kernel since.
        return _newest([manifest, *_installed()])
    return manifest


def _installed() -> list[_Manifest]:
    """Return the kernels in BOOT that can be read and have their modules."""
    prefix = "vmlinuz-"
    try:
        images = [entry for entry in os.listdir(BOOT) if entry.startswith(prefix)]
    except OSError:
        return []
    found = [_Manifest("host", image[len(prefix) :], "/boot", {}, "/") for image in images]
    return [manifest for manifest in found if manifest.is_whole()]


def _newest(manifests: Iterable[_Manifest]) -> _Manifest | None:
    return max(manifests, key=lambda manifest: release_key(manifest.release), default=None)


def release_key(release: str) -> tuple[object, ...]:
    """Return a key that orders kernel releases of any origin, release candidates before releases."""
    numbers = re.match(r"\d+(?:\.\d+)*", release)
    version = [int(part) for part in numbers[0].split(".")] if numbers else []
    while version and version[-1] == 0:  # 7.0-rc1 and 7.0.0-1 are of one version
        version.pop()
    rest = release[numbers.end() :] if numbers else release
    final = re.match(r"[-~]rc\d", rest) is None
    parts = re.findall(r"\d+|[^\d]+", rest)
    return version, final, [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _fetch(name: str, lock: int, progress: FetchProgress | None) -> _Manifest:
    from vfiotool.lab import apt

    _check_architecture()
    state = cache.directory("apt", name)
    if name == "host":
        manifest = _fetch_host(apt.Apt(state, lock), progress)
    else:
        sources = _sources(name, _mirrors(name, progress))
        manifest = _fetch_named(name, apt.Apt(state, lock, sources), sources, progress)
    cache.write_json(_manifest_path(name), asdict(manifest))
    cache.remove(state)
    return manifest


def _check_architecture() -> None:
    from vfiotool.lab import apt

    if (machine := apt.architecture()) != "amd64":
        raise UnsupportedError(f"the lab has kernels for amd64, and this machine is {machine}")


def _sources(name: str, mirrors: dict[str, str]) -> list[AptSource]:
    """Return the suites of a kernel that the mirrors have; its security suite may be without one."""
    from vfiotool.lab.apt import AptSource

    sources = [AptSource(mirrors[label], suite) for label, suite in _SUITES[name] if label in mirrors]
    if not sources:
        label, suite = _SUITES[name][0]
        raise LabError(
            f"kernel {name} is in {suite}, and no apt source of this machine is labelled '{label}'",
            hint=f"add any suite of the {label} archive to /etc/apt/sources.list.d",
        )
    return sources


def _fetch_named(name: str, apt: Apt, sources: list[AptSource], progress: FetchProgress | None) -> _Manifest:
    apt.update(progress, f"reading the package lists of {_named(sources)}")
    image = _newest_image(apt, f"{name}.")
    if image is None:
        raise LabError(
            f"{_named(sources)} has no kernel {name}",
            hint="'vfiotool lab kernels' lists the other kernels",
        )
    return _install(name, apt, image, progress)


def _named(sources: Iterable[AptSource]) -> str:
    return ", ".join(source.suite for source in sources)


def _mirrors(name: str, progress: FetchProgress | None) -> dict[str, str]:
    """Return the machine's mirrors by label, which only a fetched Release file can tell."""
    from vfiotool.lab.apt import Apt, machine_mirrors

    mirrors = machine_mirrors()
    if all(label in mirrors for label, _suite in _SUITES[name]):
        return mirrors
    with cache.locked("mirrors", lambda: _waiting(progress, name)) as lock:
        own = Apt(cache.directory("apt", "mirrors"), lock)
        failure = _update_own(own, progress)
        mirrors = own.mirrors()
        cache.remove(own.directory)
    if failure and not mirrors:
        raise failure
    return mirrors


def _update_own(apt: Apt, progress: FetchProgress | None) -> LabError | None:
    """Read the machine's own sources; one that is broken must not hide what the others offer."""
    try:
        apt.update(progress, "reading this machine's package lists")
    except LabError as error:
        return error
    return None


def _fetch_host(apt: Apt, progress: FetchProgress | None) -> _Manifest:
    installed = _newest(_installed())
    failure = _update_own(apt, progress)
    image = _newest_image(apt, "")
    if image and (installed is None or _release(image) > release_key(installed.release)):
        return _install("host", apt, image, progress)
    if installed:
        return installed
    raise failure or LabError(
        "neither /boot nor this machine's apt sources have a kernel",
        hint="name one: 'vfiotool lab kernels' lists them",
    )


def _release(image: str) -> tuple[object, ...]:
    return release_key(image.removeprefix("linux-image-"))


def _newest_image(apt: Apt, version: str) -> str | None:
    """Return the newest linux-image package of the plain flavour whose version so begins."""
    names = apt.names(f"linux-image-{version}")
    return max(filter(_IMAGE.fullmatch, names), key=_release, default=None)


def _closure(apt: Apt, image: str) -> dict[str, str]:
    """Return the versions of a kernel's own packages: from 7.0 on, Debian splits it into several."""
    own = re.compile(rf"\blinux-[a-z]+-{re.escape(image.removeprefix('linux-image-'))}(?![\w.+~-])")
    packages: dict[str, str] = {}
    todo = {image}
    while todo:
        shown = apt.show(sorted(todo))
        packages.update((fields["Package"], fields["Version"]) for fields in shown)
        depends = (name for fields in shown for name in own.findall(fields.get("Depends", "")))
        todo = set(depends) - packages.keys()
    return packages


def _install(name: str, apt: Apt, image: str, progress: FetchProgress | None) -> _Manifest:
    release = image.removeprefix("linux-image-")
    packages = _closure(apt, image)
    root = cache.directory("kernels", release)
    manifest = _Manifest(name, release, apt.suite(image, packages[image]), packages, root)
    with cache.locked(f"release-{release}", lambda: _waiting(progress, release)):
        if not _is_unpacked(manifest):
            downloads = cache.directory("downloads", release)
            debs = apt.download(packages, downloads, progress, f"downloading Linux {release}")
            _unpack(debs, manifest, progress)
            cache.remove(downloads)
    return manifest


def _is_unpacked(manifest: _Manifest) -> bool:
    """Return whether some name already has this very kernel."""
    recorded = (_recorded(name) for name in NAMES)
    return any(
        known and (known.root, known.packages) == (manifest.root, manifest.packages) for known in recorded
    )


def _unpack(debs: list[str], manifest: _Manifest, progress: FetchProgress | None) -> None:
    """Unpack packages beside their place, index the modules, and move the whole into place."""
    work = f"{manifest.root}.unpacking"
    cache.remove(work)
    os.makedirs(work)
    try:
        if progress is not None:
            progress.update(f"unpacking Linux {manifest.release}", None)
        for deb in debs:
            _run(["dpkg-deb", "-x", deb, work])
        _arrange(work, manifest.release)
        _run(["depmod", "-b", work, manifest.release])
        _move_into_place(work, manifest.root)
    finally:
        cache.remove(work)


def _move_into_place(tree: str, root: str) -> None:
    old = f"{root}.old"
    try:
        cache.remove(old)
        if os.path.exists(root):
            os.rename(root, old)
        os.rename(tree, root)
    finally:
        cache.remove(old)


def _arrange(root: str, release: str) -> None:
    """Give old and new packages one layout: boot/vmlinuz-RELEASE, lib/modules, usr/lib -> lib."""
    usr = os.path.join(root, "usr")
    if os.path.isdir(os.path.join(usr, "lib/modules")):
        os.makedirs(os.path.join(root, "lib"), exist_ok=True)
        os.rename(os.path.join(usr, "lib/modules"), os.path.join(root, "lib/modules"))
    cache.remove(usr)
    os.mkdir(usr)
    os.symlink("../lib", os.path.join(usr, "lib"))  # some builds of kmod look in usr/lib alone
    image = os.path.join(root, "lib/modules", release, "vmlinuz")
    if os.path.exists(image):
        os.makedirs(os.path.join(root, "boot"), exist_ok=True)
        os.rename(image, os.path.join(root, "boot", f"vmlinuz-{release}"))


def _run(argv: list[str]) -> None:
    import signal
    import subprocess

    from vfiotool.lab.apt import tool

    process = subprocess.Popen(
        [tool(argv[0]), *argv[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, complaints = process.communicate()
    except BaseException:
        # dpkg-deb's tar would go on writing: end both, and await both by the pipe that they share.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    if process.returncode:
        reason = complaints.strip().rpartition("\n")[2] or f"exit status {process.returncode}"
        raise LabError(
            f"'{' '.join(argv)}' failed: {reason}",
            hint="see whether the disk is full; the next run begins this step anew",
        )
