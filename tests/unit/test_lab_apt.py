"""Fetching kernels with the real apt, from a small signed archive, on a fake machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from vfiotool.errors import LabError
from vfiotool.lab import apt, cache, kernels

_MISSING = [name for name in ("apt-get", "dpkg-deb", "gpg") if not shutil.which(name)]
if _MISSING and os.environ.get("VFIOTOOL_REQUIRE_LAB") == "1":
    raise RuntimeError(f"these are required and missing: {_MISSING}")
pytestmark = pytest.mark.skipif(bool(_MISSING), reason=f"missing: {_MISSING}")


def run(*argv: str | Path, **environment: str) -> str:
    return subprocess.run(
        argv, check=True, text=True, capture_output=True, env={**os.environ, **environment}
    ).stdout


class Keys:
    """Two signing keys: a trusted key, and another."""

    def __init__(self) -> None:
        self.home = mkdtemp(prefix="vt")  # short: the agent's socket has a path of limited length
        for name in ("archive", "stranger"):
            self.gpg("--passphrase", "", "--quick-gen-key", name, "rsa2048", "sign", "never")
        self.keyring = os.path.join(self.home, "archive.gpg")
        self.gpg("--output", self.keyring, "--export", "archive")

    def gpg(self, *arguments: str | Path) -> None:
        run("gpg", "--batch", "--quiet", "--yes", *arguments, GNUPGHOME=self.home)

    def close(self) -> None:
        run("gpgconf", "--kill", "all", GNUPGHOME=self.home)
        shutil.rmtree(self.home, ignore_errors=True)


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    made = Keys()
    yield made
    made.close()


class Archive:
    """A Debian archive in a directory."""

    def __init__(self, root: Path, keys: Keys) -> None:
        self.root, self.keys = root, keys
        self.suites: dict[str, list[str]] = {}
        (root / "pool").mkdir(parents=True)

    def package(
        self, suite: str, name: str, version: str, files: dict[str, bytes], depends: str = ""
    ) -> Path:
        tree = self.root / "build"
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: x <x@x>\n"
        control += f"Depends: {depends}\n" if depends else ""
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN/control").write_text(control + "Description: x\n")
        deb = self.root / "pool" / f"{name}_{version}_amd64.deb"
        run("dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, deb)
        shutil.rmtree(tree)
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        where = f"Filename: pool/{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n"
        self.suites.setdefault(suite, []).append(f"{control}Description: x\n{where}\n")
        return deb

    def kernel(self, suite: str, release: str, version: str, content: bytes = b"image") -> Path:
        """Add a kernel with the layout of Debian's packages up to 6.x."""
        files = {f"boot/vmlinuz-{release}": content, f"lib/modules/{release}/modules.order": b""}
        return self.package(suite, f"linux-image-{release}", version, files, "kmod, linux-base")

    def split_kernel(self, suite: str, release: str, version: str) -> None:
        """Add a kernel with the layout of Debian's packages since 7.x."""
        modules = f"usr/lib/modules/{release}"
        parts = {
            "binary": {f"{modules}/vmlinuz": b"image"},
            "modules": {f"{modules}/kernel/fs/x.txt": b"x"},
            "base": {f"{modules}/modules.builtin": b"kernel/fs/y.ko\n", f"{modules}/modules.order": b""},
        }
        for part, files in parts.items():
            self.package(suite, f"linux-{part}-{release}", version, files, "kmod")
        depends = ", ".join(f"linux-{part}-{release} (= {version})" for part in parts)
        self.package(suite, f"linux-image-{release}", version, {"usr/share/x": b""}, f"kmod, {depends}")

    def publish(self, suite: str, label: str = "Debian", key: str | None = "archive") -> None:
        top = self.root / "dists" / suite
        index = top / "main/binary-amd64/Packages"
        index.parent.mkdir(parents=True, exist_ok=True)
        content = "".join(self.suites.get(suite, ())).encode()
        index.write_bytes(content)
        fields = {
            "Origin": "Debian", "Label": label, "Suite": suite, "Codename": suite,
            "Date": formatdate(usegmt=True), "Architectures": "amd64", "Components": "main",
            "SHA256": f"\n {hashlib.sha256(content).hexdigest()} {len(content)} main/binary-amd64/Packages",
        }  # fmt: skip
        release = top / "Release"
        release.write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
        if key:
            self.keys.gpg("-u", key, "--output", top / "InRelease", "--clear-sign", release)


@pytest.fixture
def archive(tmp_path: Path, keys: Keys) -> Archive:
    made = Archive(tmp_path / "archive", keys)
    made.package("bookworm", "something", "1", {})  # apt does not show an index that is empty
    made.publish("bookworm")
    return made


class Machine:
    """A fake Debian machine: /etc/apt, package lists, /boot and the cache are in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for part in ("parts", "state/lists/partial", "cache/archives/partial"):
            (root / part).mkdir(parents=True)
        self.config = root / "machine.conf"
        self.config.write_text(
            f'Dir::Etc::Parts "{root}/parts"; Dir::Etc::Main "/dev/null"; Dir::State "{root}/state";\n'
            f'Dir::Etc::SourceList "{root}/machine.list"; Dir::Etc::SourceParts "/dev/null";\n'
            f'Dir::Cache "{root}/cache"; APT::Sandbox::User "root"; Acquire::Languages "none";\n'
        )

    def configure(self, line: str) -> None:
        with self.config.open("a") as file:
            file.write(f"{line}\n")

    def sources(self, *uri_and_suites: str) -> None:
        options = f"[arch=amd64 signed-by={apt.KEYRING}]"
        text = "".join(f"deb {options} {source} main\n" for source in uri_and_suites)
        (self.root / "machine.list").write_text(text)


@pytest.fixture
def machine(tmp_path: Path, archive: Archive, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Machine:
    if apt.architecture() != "amd64":
        pytest.skip("the lab has kernels for amd64 only")
    made = Machine(tmp_path / "machine")
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("APT_CONFIG", str(made.config))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(apt, "KEYRING", keys.keyring)
    monkeypatch.setattr(kernels, "BOOT", str(tmp_path / "no-boot"))
    made.sources(f"file:{archive.root} bookworm")
    return made


class Recorder:
    """A FetchProgress that records its updates."""

    def __init__(self) -> None:
        self.updates: list[tuple[str, float | None]] = []

    def update(self, description: str, fraction: float | None) -> None:
        self.updates.append((description, fraction))


def entries(path: str) -> set[str]:
    return set(os.listdir(path))


@pytest.mark.parametrize("updated", [True, False], ids=["lists", "no-lists"])
def test_get_fetches_a_kernel_of_another_suite(machine: Machine, archive: Archive, updated: bool) -> None:
    archive.kernel("trixie", "6.12.9+deb13-amd64", "6.12.9-1", b"the older one")
    archive.kernel("trixie", "6.12.10+deb13-amd64", "6.12.10-1", b"the image")
    archive.kernel("trixie", "6.12.10+deb13-cloud-amd64", "6.12.10-1")
    archive.publish("trixie")
    if updated:
        run("apt-get", "update")
    before = sorted(machine.root.rglob("*"))
    recorder = Recorder()

    kernel = kernels.get("6.12", progress=recorder)

    root = cache.directory("kernels", "6.12.10+deb13-amd64")
    assert kernel == kernels.Kernel(
        "6.12", "6.12.10+deb13-amd64", f"{root}/boot/vmlinuz-6.12.10+deb13-amd64", root
    )
    assert Path(kernel.image).read_bytes() == b"the image"
    assert "modules.dep" in entries(f"{root}/lib/modules/{kernel.release}")
    assert cache.read_json(cache.directory("kernels", "6.12.json")) == {
        "name": "6.12", "release": kernel.release, "suite": "trixie", "root": root,
        "packages": {"linux-image-6.12.10+deb13-amd64": "6.12.10-1"},
    }  # fmt: skip
    assert ("downloading Linux 6.12.10+deb13-amd64", 1.0) in recorder.updates
    assert entries(cache.directory("kernels")) == {kernel.release, "6.12.json"}
    assert entries(cache.directory("downloads")) == entries(cache.directory("apt")) == set()
    # apt keeps a binary cache of what it reads; nothing else of the machine's is new.
    changed = {path.name for path in machine.root.rglob("*") if path not in before}
    assert changed <= {"pkgcache.bin", "srcpkgcache.bin", "lock"}


def test_get_unpacks_a_split_kernel_into_the_same_layout(machine: Machine, archive: Archive) -> None:
    archive.split_kernel("forky", "7.2.12+deb14-amd64", "7.2.12-1")
    archive.publish("forky")

    kernel = kernels.get("7")

    modules = Path(kernel.modules_root, "lib/modules", kernel.release)
    assert Path(kernel.image).read_bytes() == b"image"
    assert Path(kernel.image).parent == Path(kernel.modules_root, "boot")
    assert (modules / "kernel/fs/x.txt").read_bytes() == b"x"
    assert (modules / "modules.builtin").exists()
    assert Path(kernel.modules_root, "usr/lib/modules", kernel.release, "modules.dep").exists()


def test_a_cached_kernel_needs_no_apt(
    machine: Machine, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.kernel("trixie", "6.12.9+deb13-amd64", "6.12.9-1")
    archive.publish("trixie")
    first = kernels.get("6.12")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(apt, "_SBIN", "")

    assert kernels.get("6.12") == first


def test_refresh_fetches_a_newer_release_and_keeps_the_same_one(machine: Machine, archive: Archive) -> None:
    archive.kernel("trixie", "6.12.9+deb13-amd64", "6.12.9-1", b"first")
    archive.publish("trixie")
    old = kernels.get("6.12")
    inode = os.stat(old.image).st_ino
    assert os.stat(kernels.get("6.12", refresh=True).image).st_ino == inode

    archive.kernel("trixie", "6.12.9+deb13-amd64", "6.12.9-2", b"a rebuild")
    archive.publish("trixie")
    assert kernels.get("6.12") == old
    rebuilt = kernels.get("6.12", refresh=True)
    assert (rebuilt, Path(rebuilt.image).read_bytes()) == (old, b"a rebuild")

    archive.kernel("trixie", "6.12.10+deb13-amd64", "6.12.10-1")
    archive.publish("trixie")
    assert kernels.get("6.12", refresh=True).release == "6.12.10+deb13-amd64"


def test_the_newest_source_package_is_fetched(machine: Machine, archive: Archive, tmp_path: Path) -> None:
    for version, content in (("6.12.9-1", b"old"), ("6.12.10-1", b"new")):
        archive.package("trixie", "linux-source-6.12", version, {"usr/src/x": content})
    archive.package("trixie", "linux-source-6.12-rt", "6.12.11-1", {})
    archive.publish("trixie")

    path, version = kernels.fetch_source(str(tmp_path / "here"), None)

    assert version == "6.12.10-1"
    run("dpkg-deb", "-x", path, tmp_path)
    assert (tmp_path / "usr/src/x").read_bytes() == b"new"
    assert entries(str(tmp_path / "here")) == {os.path.basename(path)}
    assert entries(cache.directory("apt")) == set()


def test_a_suite_without_the_source_package_is_an_error(machine: Machine, archive: Archive) -> None:
    archive.kernel("trixie", "6.12.9+deb13-amd64", "6.12.9-1")
    archive.publish("trixie")
    with pytest.raises(LabError, match=r"trixie has no package linux-source-6\.12") as caught:
        kernels.fetch_source("/nowhere", None)
    assert caught.value.hint


def test_host_is_the_newest_kernel_of_the_sources_despite_a_broken_source(
    machine: Machine, archive: Archive
) -> None:
    for release in ("6.1.0-9-amd64", "6.1.0-50-amd64", "6.12.90+deb12-amd64", "6.12.90+deb12-rt-amd64"):
        archive.kernel("bookworm", release, "1")
    archive.publish("bookworm")
    machine.sources(f"file:{archive.root} bookworm", "file:/nowhere bookworm")

    assert kernels.get("host").release == "6.12.90+deb12-amd64"


def test_host_is_the_installed_kernel_if_it_is_newer(
    machine: Machine, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.kernel("bookworm", "6.12.90+deb12-amd64", "1")
    archive.publish("bookworm")
    installed = kernels._Manifest("host", "6.18.44-custom", "/boot", {}, str(tmp_path))
    monkeypatch.setattr(kernels, "_installed", lambda: [installed])

    assert kernels.get("host").release == "6.18.44-custom"
    assert entries(cache.directory("kernels")) == {"host.json"}


def _publish_unsigned(archive: Archive) -> None:
    archive.publish("trixie", key=None)


def _publish_with_another_key(archive: Archive) -> None:
    archive.publish("trixie", key="stranger")


def _change_the_index(archive: Archive) -> None:
    archive.publish("trixie")
    index = archive.root / "dists/trixie/main/binary-amd64/Packages"
    index.write_text(index.read_text().replace("kmod", "kmox"))


def _change_the_package(archive: Archive) -> None:
    archive.publish("trixie")
    (deb,) = (archive.root / "pool").glob("linux-image-6.12*")
    deb.write_bytes(deb.read_bytes().replace(b"good image", b"evil image"))


@pytest.mark.parametrize(
    "spoil", [_publish_unsigned, _publish_with_another_key, _change_the_index, _change_the_package]
)
def test_unsigned_packages_are_refused_whatever_the_machine_allows(
    machine: Machine, archive: Archive, spoil: object
) -> None:
    machine.configure('Acquire::AllowInsecureRepositories "true"; APT::Get::AllowUnauthenticated "true";')
    archive.kernel("trixie", "6.12.9+deb13-amd64", "6.12.9-1", b"good image")
    assert callable(spoil)
    spoil(archive)

    with pytest.raises(LabError) as caught:
        kernels.get("6.12")

    assert "unsigned packages are never used" in caught.value.hint
    assert not os.path.exists(cache.directory("kernels"))


def test_a_removed_suite_is_an_error_with_a_hint(machine: Machine) -> None:
    with pytest.raises(LabError, match="forky") as caught:
        kernels.get("7")
    assert caught.value.hint


def test_a_kernel_of_the_security_archive_needs_a_mirror_of_it(machine: Machine) -> None:
    with pytest.raises(LabError, match=r"bullseye-security.*labelled 'Debian-Security'") as caught:
        kernels.get("5.10")
    assert "/etc/apt/sources.list.d" in caught.value.hint


def test_the_security_mirror_is_found_by_its_label(
    machine: Machine, archive: Archive, tmp_path: Path, keys: Keys
) -> None:
    security = Archive(tmp_path / "security", keys)
    security.package("bookworm-security", "something", "1", {})
    security.publish("bookworm-security", "Debian-Security")
    security.kernel("bullseye-security", "5.10.0-46-amd64", "5.10.262-1")
    security.kernel("bullseye-security", "6.1.0-0.deb11.25-amd64", "6.1.1-1")
    security.publish("bullseye-security", "Debian-Security")
    machine.sources(f"file:{archive.root} bookworm", f"file:{security.root} bookworm-security")

    assert kernels.get("5.10").release == "5.10.0-46-amd64"


def test_the_machines_update_hooks_are_not_run(machine: Machine, archive: Archive, tmp_path: Path) -> None:
    for hook in ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success"):
        machine.configure(f'APT::Update::{hook} {{ "touch {tmp_path}/hooked"; }};')
    archive.kernel("trixie", "6.12.9+deb13-amd64", "6.12.9-1")
    archive.publish("trixie")

    kernels.get("6.12")

    assert not (tmp_path / "hooked").exists()


# dpkg-deb fails; dpkg-deb is interrupted, as by Ctrl-C, while its child still writes and it is awaited.
_NO_ROOM = "echo no room >&2; exit 1"
_INTERRUPTED = """
(i=0; while [ $i -lt 50000 ] && mkdir "$3/$i"; do i=$((i+1)); done) &
until [ -e "$AWAITED" ]; do :; done
kill -INT $PPID
wait
"""


class _Awaited(subprocess.Popen[str]):
    """Creates a file when the output of dpkg-deb is awaited; other programs run before it."""

    def communicate(self, *arguments: Any, **options: Any) -> tuple[str, str]:
        if "dpkg-deb" in str(self.args):
            Path(os.environ["AWAITED"]).touch()
        return super().communicate(*arguments, **options)


@pytest.mark.parametrize(
    ("script", "expected", "message"),
    [(_NO_ROOM, LabError, "no room"), (_INTERRUPTED, KeyboardInterrupt, "^$")],
    ids=["failed", "interrupted"],
)
def test_an_interrupted_unpacking_leaves_no_kernel(
    machine: Machine,
    archive: Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    expected: type[BaseException],
    message: str,
) -> None:
    archive.kernel("trixie", "6.12.9+deb13-amd64", "6.12.9-1")
    archive.publish("trixie")
    program = tmp_path / "bin/dpkg-deb"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        patch.setenv("AWAITED", str(tmp_path / "awaited"))
        patch.setattr(subprocess, "Popen", _Awaited)
        with pytest.raises(expected, match=message):
            kernels.get("6.12")

    assert entries(cache.directory("kernels")) == set()
    assert kernels.get("6.12").release == "6.12.9+deb13-amd64"


class Server(ThreadingHTTPServer):
    """Serves an archive, with HTTP ranges; a body longer than ``limit`` stalls at this length."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.limit: int | None = None
        self.stalled, self.release = threading.Event(), threading.Event()
        self.requests: list[tuple[str, int, int]] = []  # path, status, first byte

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def debs(self) -> list[tuple[int, int]]:
        return [(status, start) for path, status, start in self.requests if path.endswith(".deb")]


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        file = self.server.root / self.path.lstrip("/").replace("%2b", "+").replace("%7e", "~")
        if not file.is_file():
            self.send_error(404)
            return
        content, modified = file.read_bytes(), formatdate(int(file.stat().st_mtime), usegmt=True)
        wanted = self.headers.get("Range")
        partial = wanted is not None and self.headers.get("If-Range") == modified
        start = int(str(wanted).removeprefix("bytes=").rstrip("-")) if partial else 0
        status, sent = (206 if partial else 200), f"{start}-{len(content) - 1}"
        if partial and start >= len(content):
            status, sent = 416, "*"
        self.server.requests.append((self.path, status, start))
        self.send_response(status)
        self.send_header("Last-Modified", modified)
        self.send_header("Content-Length", str(len(content) - start))
        if status != 200:
            self.send_header("Content-Range", f"bytes {sent}/{len(content)}")
        self.end_headers()
        self._send(content[start:])

    def _send(self, body: bytes) -> None:
        limit = self.server.limit
        if limit is None or len(body) <= limit:
            self.wfile.write(body)
            return
        self.wfile.write(body[:limit])
        self.server.stalled.set()
        self.server.release.wait(60)
        self.close_connection = True

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Log nothing."""


@pytest.fixture
def server(machine: Machine, archive: Archive) -> Iterator[Server]:
    with Server(archive.root) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        machine.sources(f"{made.uri} bookworm")
        yield made
        made.release.set()
        made.shutdown()
        thread.join()


def _big_kernel(archive: Archive) -> bytes:
    content = os.urandom(1 << 21)
    archive.kernel("trixie", "6.12.9+deb13-amd64", "6.12.9-1", content)
    archive.publish("trixie")
    return content


def test_an_interrupted_download_is_continued(server: Server, archive: Archive) -> None:
    content = _big_kernel(archive)
    server.limit = 1 << 20

    class Impatient:
        def update(self, description: str, fraction: float | None) -> None:
            if description.startswith("downloading") and fraction is not None and fraction > 0.2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kernels.get("6.12", progress=Impatient())
    server.release.set()
    server.limit = None
    kernel = kernels.get("6.12")

    (first, (status, start)) = server.debs()
    assert first == (200, 0)
    assert status == 206
    assert 0 < start <= 1 << 20
    assert Path(kernel.image).read_bytes() == content


def test_the_download_of_a_killed_vfiotool_continues(server: Server, archive: Archive) -> None:
    content = _big_kernel(archive)
    server.limit = 1 << 20
    code = "from vfiotool.lab import apt, kernels; import sys; apt.KEYRING = sys.argv[1]; kernels.get('6.12')"
    with subprocess.Popen([sys.executable, "-c", code, apt.KEYRING], stderr=subprocess.DEVNULL) as killed:
        assert server.stalled.wait(60)
        killed.kill()
    server.limit = None

    class Waiting:
        def update(self, description: str, fraction: float | None) -> None:
            if description.startswith("waiting"):
                server.release.set()

    kernel = kernels.get("6.12", progress=Waiting())

    assert server.release.is_set()  # apt held the lock for as long as it ran
    # The killed one's apt was cut off and went on by itself; the next had nothing left to fetch.
    assert [status for status, _start in server.debs()] == [200, 206, 416]
    assert Path(kernel.image).read_bytes() == content


def test_concurrent_calls_fetch_a_kernel_once(server: Server, archive: Archive) -> None:
    _big_kernel(archive)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(kernels.get, ["6.12", "6.12"])

    assert first == second
    assert server.debs() == [(200, 0)]
    assert [path for path, _, _ in server.requests].count("/dists/trixie/InRelease") == 1
