"""The lab's kernels by name: fetched with apt into the user's cache, never installed; ``debug`` is built.

``<cache>/kernels/<release>/`` holds ``boot/vmlinuz-<release>`` and ``lib/modules/<release>``, and is created
atomically. ``<cache>/kernels/<name>.json`` records the release of a name; while this file exists, neither the
network nor apt is needed.
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
"""The name of the kernel that ``scripts/build-kernel`` builds, and of the kernel with its source package."""
NAMES = ("host", "5.10", "6.1", "6.12", "7", BUILT)
BOOT = "/boot"

_BUILDER = "scripts/build-kernel"

# The suites of each kernel: (label of the mirror's Release file, suite).
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
    """A bootable kernel: ``modules_root``/lib/modules/``release`` has its modules."""

    name: str
    release: str
    image: str
    modules_root: str


@dataclass(frozen=True, slots=True)
class Availability:
    """The state of a kernel name: ``release`` and ``path`` are ``None`` until they are known."""

    name: str
    release: str | None
    cached: bool
    path: str | None
    suite: str


@dataclass(frozen=True, slots=True)
class _Manifest:
    """The content of a name's JSON file; ``root`` is "/" for the kernel installed on the machine."""

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
    """Return the kernel of a name; fetch it first if it is not in the cache.

    With ``refresh``, look for the newest release again, except for BUILT. Safe for several processes and
    threads: the first fetches, the others wait. A KeyboardInterrupt leaves no partial kernel, and keeps the
    downloads for the next call.

    Raises:
        SelectorError: the name is unknown.
        UnsupportedError: the machine has no apt, or is not amd64.
        LabError: the kernel is not built, or the network, a signature or the disk caused a failure.
    """
    if name not in NAMES:
        raise SelectorError(f"there is no kernel named '{name}'", hint=f"choose from {', '.join(NAMES)}")
    if (not refresh or name == BUILT) and (known := _cached(name)):
        return known.kernel
    if name == BUILT:
        raise LabError(
            f"kernel '{name}' has not been built",
            hint=f"run {_BUILDER} in a checkout of vfiotool, once; it takes some minutes",
        )
    try:
        with cache.locked(f"kernel-{name}", lambda: _waiting(progress, name)) as lock:
            if not refresh and (known := _cached(name)):
                return known.kernel
            return _fetch(name, lock, progress).kernel
    except OSError as error:
        raise LabError(
            f"cannot store kernel '{name}' in {cache.directory()}: {error.strerror}",
            hint="set XDG_CACHE_HOME to a directory that you can write to, with 1 GB free",
        ) from error


def fetch_source(directory: str, progress: FetchProgress | None) -> tuple[str, str]:
    """Fetch the newest source package of kernel BUILT_FROM; return the path of the file and the version.

    Continues an interrupted download in ``directory``. Raises the same errors as ``get``.
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
                hint="check that the mirror is complete",
            )
        (fields,) = apt.show([package])
        wanted = {package: fields["Version"]}
        (path,) = apt.download(wanted, directory, progress, f"downloading {package}")
        cache.remove(apt.directory)
    return path, fields["Version"]


def add_built(tree: str, release: str, version: str) -> None:
    """Move a built kernel into the cache under the name BUILT; ``version`` is the version of its source.

    ``tree`` is on the cache's file system, with the layout of a kernel's directory in the cache. LabError if
    it lacks the image or the modules. The caller must exclude other builds.
    """
    root = cache.directory("kernels", release)
    packages = {f"linux-source-{BUILT_FROM}": version}
    if not _Manifest(BUILT, release, _BUILDER, packages, tree).is_whole():
        raise LabError(
            f"{tree} lacks the image or the modules of kernel {release}", hint=f"run {_BUILDER} again"
        )
    _move_into_place(tree, root)
    cache.write_json(_manifest_path(BUILT), asdict(_Manifest(BUILT, release, _BUILDER, packages, root)))


def available() -> list[Availability]:
    """Return the state of each name, as far as it is known without apt."""
    return [_availability(name) for name in NAMES]


def _availability(name: str) -> Availability:
    if known := _cached(name):
        return Availability(name, known.release, True, known.root, known.suite)
    suites = ", ".join(suite for _label, suite in _SUITES.get(name, ()))
    elsewhere = {"host": "this machine's sources", BUILT: _BUILDER}
    return Availability(name, None, False, None, elsewhere.get(name, suites))


def _waiting(progress: FetchProgress | None, name: str) -> None:
    if progress is not None:
        progress.update(f"waiting for another vfiotool to fetch kernel {name}", None)


def _manifest_path(name: str) -> str:
    return cache.directory("kernels", f"{name}.json")


def _recorded(name: str) -> _Manifest | None:
    value = cache.read_json(_manifest_path(name))
    try:
        manifest = _Manifest(**value) if value else None
    except TypeError:  # a vfiotool of another version wrote other fields
        return None
    return manifest if manifest and manifest.is_whole() else None


def _cached(name: str) -> _Manifest | None:
    manifest = _recorded(name)
    if name == "host" and manifest:
        # A newer kernel may have been installed since.
        return _newest([manifest, *_installed()])
    return manifest


def _installed() -> list[_Manifest]:
    """Return the readable kernels in BOOT whose modules are installed."""
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
    """Return a key that orders kernel releases of any origin, a release candidate before its release."""
    numbers = re.match(r"\d+(?:\.\d+)*", release)
    version = [int(part) for part in numbers[0].split(".")] if numbers else []
    while version and version[-1] == 0:  # 7.0-rc1 and 7.0.0-1 have the same version
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
        raise UnsupportedError(f"the lab only has kernels for amd64, and this machine is {machine}")


def _sources(name: str, mirrors: dict[str, str]) -> list[AptSource]:
    """Return the suites of a kernel on the machine's mirrors; the security suite may have no mirror."""
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
            hint="choose another kernel: see 'vfiotool lab kernels'",
        )
    return _install(name, apt, image, progress)


def _named(sources: Iterable[AptSource]) -> str:
    return ", ".join(source.suite for source in sources)


def _mirrors(name: str, progress: FetchProgress | None) -> dict[str, str]:
    """Return the machine's mirrors by label; only a fetched Release file has the label."""
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
    """Read the machine's sources; return the error of a broken source, which must not hide the others."""
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
        hint="choose a kernel by name: see 'vfiotool lab kernels'",
    )


def _release(image: str) -> tuple[object, ...]:
    return release_key(image.removeprefix("linux-image-"))


def _newest_image(apt: Apt, version: str) -> str | None:
    """Return the newest linux-image package of the plain flavour whose version starts with ``version``."""
    names = apt.names(f"linux-image-{version}")
    return max(filter(_IMAGE.fullmatch, names), key=_release, default=None)


def _closure(apt: Apt, image: str) -> dict[str, str]:
    """Return the versions of a kernel's packages: since 7.0, Debian splits a kernel into several packages."""
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
    """Return True if any name already has exactly this kernel."""
    recorded = (_recorded(name) for name in NAMES)
    return any(
        known and (known.root, known.packages) == (manifest.root, manifest.packages) for known in recorded
    )


def _unpack(debs: list[str], manifest: _Manifest, progress: FetchProgress | None) -> None:
    """Unpack packages into a temporary directory, index the modules, and move the kernel into place."""
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
    """Give old and new packages the same layout: boot/vmlinuz-RELEASE, lib/modules, usr/lib -> lib."""
    usr = os.path.join(root, "usr")
    if os.path.isdir(os.path.join(usr, "lib/modules")):
        os.makedirs(os.path.join(root, "lib"), exist_ok=True)
        os.rename(os.path.join(usr, "lib/modules"), os.path.join(root, "lib/modules"))
    cache.remove(usr)
    os.mkdir(usr)
    os.symlink("../lib", os.path.join(usr, "lib"))  # some builds of kmod look only in usr/lib
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
        # dpkg-deb's tar would go on writing: kill both, and wait for both through their shared pipe.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    if process.returncode:
        reason = complaints.strip().rpartition("\n")[2] or f"exit status {process.returncode}"
        raise LabError(
            f"'{' '.join(argv)}' failed: {reason}",
            hint="check that the disk is not full; the next run repeats this step",
        )
