"""The machine's apt with private state: it fetches from any suite and installs nothing.

Proxies, credentials and timeouts are those of /etc/apt. Sources, lists, caches and the rules on signatures
are private: unsigned packages are never accepted, whatever the machine's configuration allows.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from vfiotool.errors import LabError, UnsupportedError

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_HELPER = "/usr/lib/apt/apt-helper"
_SBIN = ":/usr/local/sbin:/usr/sbin:/sbin"  # not on the PATH of Debian's ordinary users

# Hooks are cleared because apt runs them after any update, and they act on the machine's state.
# Index targets are cleared because only Packages is needed, and others are large.
_CONFIG = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets;
Acquire::IndexTargets::deb::Packages {{
  MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages"; flatMetaKey "Packages";
  ShortDescription "Packages"; Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages";
  flatDescription "$(RELEASE) Packages";
}};
Acquire::Languages "none";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
APT::Get::AllowUnauthenticated "false";
APT::Default-Release "";
APT::Update::Error-Mode "any";
Dir::State "{directory}";
Dir::State::lists "lists";
Dir::State::status "{directory}/status";
Dir::Cache "{directory}";
Dir::Cache::archives "archives";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
"""

_OFFLINE = re.compile(r"resolv|connect|unreachable|timed out|Connection failed", re.IGNORECASE)
_UNSIGNED = re.compile(r"NO_PUBKEY|not signed|GPG error|signature|Hash Sum mismatch", re.IGNORECASE)
_GONE = re.compile(r"does not have a Release file|404|no longer has a Release")
_FULL = re.compile(r"No space left|enough free space|Disk quota")


class FetchProgress(Protocol):
    """The receiver of the progress of a fetch."""

    def update(self, description: str, fraction: float | None) -> None:
        """Receive the current step and the part of it that is done (0 to 1; ``None`` if unknown)."""


@dataclass(frozen=True, slots=True)
class AptSource:
    """A Debian suite on a mirror."""

    uri: str
    suite: str

    def line(self, architecture: str) -> str:
        """Return the source as a line of sources.list(5), with only the keys of Debian's archive."""
        options = f"arch={architecture}"
        if os.path.exists(KEYRING):
            options += f" signed-by={KEYRING}"
        return f"deb [{options}] {self.uri} {self.suite} main\n"


def architecture() -> str:
    """Return dpkg's name of this machine's architecture; UnsupportedError without dpkg."""
    return _query([tool("dpkg"), "--print-architecture"]).strip()


def tool(name: str) -> str:
    """Return the path of a program, also from the sbin directories; UnsupportedError if absent."""
    path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + _SBIN)
    if path is None:
        raise UnsupportedError(
            f"'{name}' is not installed, and the lab fetches its kernels with it",
            hint="install Debian's apt, dpkg and kmod",
        )
    return path


class Apt:
    """apt with its state in ``directory``, with the given sources or, by default, the machine's.

    Not for use by two processes at once: the caller holds a lock. Every apt process inherits the
    descriptor of the lock, so the lock lasts until an apt that outlives a killed vfiotool has ended.
    """

    def __init__(self, directory: str, lock: int, sources: Sequence[AptSource] | None = None) -> None:
        self.directory = directory
        self._lock = lock
        self._config = os.path.join(directory, "apt.conf")
        for part in ("lists/partial", "archives/partial"):
            os.makedirs(os.path.join(directory, part), exist_ok=True)
        self._write("status", "")
        config = _CONFIG.format(directory=directory)
        if os.geteuid() == 0:  # apt's own user cannot enter root's cache, and warns about it
            config += 'APT::Sandbox::User "root";\n'
        if sources is not None:
            here = architecture()
            self._write("sources.list", "".join(source.line(here) for source in sources))
            config += f'Dir::Etc::SourceList "{directory}/sources.list";\n'
            config += 'Dir::Etc::SourceParts "/dev/null";\n'
        self._write("apt.conf", config)

    def _write(self, name: str, text: str) -> None:
        with open(os.path.join(self.directory, name), "w", encoding="utf-8") as file:
            file.write(text)

    def _argv(self, program: str, *arguments: str) -> list[str]:
        return [tool(program), "-c", self._config, *arguments]

    def update(self, progress: FetchProgress | None, description: str) -> None:
        """Fetch the package lists; LabError if a list or its signature cannot be fetched."""
        self._acquire(self._argv("apt-get", "update"), self.directory, progress, description)

    def mirrors(self) -> dict[str, str]:
        """Return the sources' URIs by the label in their signed Release file ("Debian", …)."""
        return _mirrors(self._argv("apt-get"))

    def names(self, prefix: str) -> list[str]:
        """Return the names of all packages that begin with ``prefix``."""
        return _query(self._argv("apt-cache", "pkgnames", prefix)).split()

    def show(self, packages: Sequence[str]) -> list[dict[str, str]]:
        """Return the control fields of each package's candidate version."""
        if not packages:
            return []
        text = _query(self._argv("apt-cache", "show", "--no-all-versions", *packages))
        return [_fields(stanza) for stanza in text.split("\n\n") if stanza.strip()]

    def suite(self, package: str, version: str) -> str:
        """Return the suite that offers this version of a package."""
        for line in _query(self._argv("apt-cache", "madison", package)).splitlines():
            _name, offered, where = (part.strip() for part in line.split("|"))
            if offered == version:
                return where.split()[1].rpartition("/")[0]
        return ""

    def download(
        self, packages: Mapping[str, str], directory: str, progress: FetchProgress | None, what: str
    ) -> list[str]:
        """Fetch package versions into ``directory`` and return the paths of the files.

        An interrupted download is continued if the server supports it (apt asks with Range and If-Range).
        The hash of every file is checked against the signed lists.
        """
        os.makedirs(directory, exist_ok=True)
        wanted = [f"{name}={version}" for name, version in packages.items()]
        # Run in another directory: apt-get lists only files that the current directory lacks.
        uris = _query(self._argv("apt-get", "--print-uris", "download", *wanted), self.directory)
        files = re.findall(r"^'(\S+)' (\S+) \d+ (\S+)$", uris, re.MULTILINE)
        if len(files) != len(wanted):
            raise LabError(f"apt has no source for {' '.join(wanted)}", hint=_AGAIN)
        paths = [os.path.join(directory, name) for _uri, name, _hash in files]
        triples = [
            part for (uri, _, digest), path in zip(files, paths, strict=True)
            for part in (uri, path, digest)
        ]  # fmt: skip
        argv = [_HELPER, "-c", self._config, "download-file", *triples]
        self._acquire(argv, directory, progress, what)
        return paths

    def _acquire(
        self, argv: list[str], directory: str, progress: FetchProgress | None, description: str
    ) -> None:
        """Run an apt that fetches. An interrupt stops it so that a later call can continue."""
        log = os.path.join(self.directory, "log")
        read_end, write_end = os.pipe()
        with open(read_end, encoding="utf-8", errors="replace") as status, open(log, "w+") as output:
            try:
                process = subprocess.Popen(
                    [*argv, "-o", f"APT::Status-Fd={write_end}"],
                    cwd=directory,
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(write_end, self._lock),
                    start_new_session=True,
                    restore_signals=False,  # SIGPIPE stays ignored: it outlives a killed vfiotool
                )
            finally:
                os.close(write_end)
            try:
                _follow(status, progress, description)
                code = process.wait()
            except BaseException:
                _interrupt(process)
                raise
            output.seek(0)
            if code:
                raise _error(f"apt failed while {description}", output.read())


def machine_mirrors() -> dict[str, str]:
    """Return the mirrors of the package lists that the machine has already fetched, by label."""
    return _mirrors([tool("apt-get")])


def _mirrors(apt_get: list[str]) -> dict[str, str]:
    shape = "$(LABEL)|$(REPO_URI)"
    found: dict[str, str] = {}
    for line in _query([*apt_get, "indextargets", "--format", shape]).splitlines():
        label, _, uri = line.partition("|")
        found.setdefault(label, uri)
    return found


def _follow(status: IO[str], progress: FetchProgress | None, description: str) -> None:
    """Report apt's ``dlstatus:FILE:PERCENT:TEXT`` lines until it closes the pipe."""
    if progress is not None:
        progress.update(description, None)
    for line in status:
        parts = line.split(":", 3)
        if progress is not None and len(parts) == 4 and parts[0] == "dlstatus":
            progress.update(description, min(float(parts[2]) / 100, 1.0))


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    # On SIGINT, apt's methods set the server's date on the partial file; without the date, the server
    # would send the whole file again. The methods are in their own session: signal its process group.
    try:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=5)
    except ProcessLookupError:
        process.wait()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _query(argv: list[str], directory: str | None = None) -> str:
    result = subprocess.run(
        argv, cwd=directory, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if result.returncode:
        words = " ".join(argv[3:5] if argv[1:2] == ["-c"] else argv[1:3])
        raise _error(f"'{os.path.basename(argv[0])} {words}' failed", result.stderr)
    return result.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


_AGAIN = "refresh the package lists with 'vfiotool lab kernels --refresh'"


def _error(what: str, output: str) -> LabError:
    found = re.search(r"^[EW]: *(.+)$", output, re.MULTILINE)  # the first error is the cause of the others
    reason = found[1] if found else output.strip().rpartition("\n")[2] or "it gave no reason"
    return LabError(f"{what}: {reason}", hint=_hint(output))


def _hint(output: str) -> str:
    for pattern, hint in _HINTS:
        if pattern.search(output):
            return hint
    return "check that 'apt-get update' works on this machine"


_HINTS: Sequence[tuple[re.Pattern[str], str]] = (
    (_FULL, "free some disk space, or set XDG_CACHE_HOME to a directory with more"),
    (_UNSIGNED, "update the package debian-archive-keyring; unsigned packages are never used"),
    (_GONE, "the mirror no longer has this suite; try another kernel ('vfiotool lab kernels')"),
    (_OFFLINE, "check the network, and the proxy in /etc/apt/apt.conf.d; completed downloads are kept"),
)


def _fields(stanza: str) -> dict[str, str]:
    lines: Iterable[str] = stanza.replace("\n ", " ").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
