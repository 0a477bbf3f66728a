"""What a device was before vfiotool touched it, kept until it is that again.

One file a device below the state folder, root's alone (0700, 0600), each replaced as a whole and
synchronized before the first write to the device.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from vfiotool.errors import VfioToolError
from vfiotool.host.devices import Device, DeviceState
from vfiotool.host.pending import STATE_DIR, pending_dir
from vfiotool.pci.address import is_address, sort_key

_SCHEMA = "vfiotool.journal/1"
_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Record:
    """The former state of the device that had this address and these ids."""

    address: str
    vendor_id: int
    device_id: int
    state: DeviceState

    def is_of(self, device: Device) -> bool:
        """Say whether the device at the address is still the one that was recorded."""
        return (device.vendor_id, device.device_id) == (self.vendor_id, self.device_id)


class Journal:
    """The records below a state folder. Processes are kept apart by ``lock``; threads are not."""

    def __init__(self, state_dir: str = STATE_DIR) -> None:
        self.state_dir = state_dir
        self._records_dir = f"{state_dir}/journal"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other vfiotools from changing anything meanwhile; waits until they are done.

        Makes the folders where they are missing.

        Raises:
            VfioToolError: the state folder cannot be made, or is not this user's own.
        """
        for folder in (self.state_dir, self._records_dir, pending_dir(self.state_dir)):
            _make_private(folder)
        with _unusable(self.state_dir):
            fd = os.open(f"{self.state_dir}/lock", os.O_RDWR | os.O_CREAT | _SAFELY, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def record(self, device: Device) -> bool:
        """Keep a device's state, unless an older one of the same device is kept; say whether it was.

        Raises:
            VfioToolError: it cannot be written, or the record that is there cannot be understood.
        """
        known = self.find(device.address)
        if known is not None and known.is_of(device):
            return False
        with _unusable(self.state_dir):
            self._write(Record(device.address, device.vendor_id, device.device_id, device.state))
        return True

    def find(self, address: str) -> Record | None:
        """Return the record of an address, or ``None``.

        Raises:
            VfioToolError: the record cannot be understood.
        """
        path = self._path(address)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | _SAFELY), encoding="utf-8") as file:
                return _parse(json.load(file), address)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _damaged(path, error.strerror or str(error)) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from error

    def addresses(self) -> list[str]:
        """Return the addresses of all records, in order."""
        try:
            names = os.listdir(self._records_dir)
        except FileNotFoundError:
            return []
        found = [name.removesuffix(".json") for name in names if name.endswith(".json")]
        return sorted((name for name in found if is_address(name)), key=sort_key)

    def forget(self, address: str) -> None:
        """Remove a record; it need not exist."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(address))
            _sync_folder(self._records_dir)

    def _path(self, address: str) -> str:
        return f"{self._records_dir}/{address}.json"

    def _write(self, record: Record) -> None:
        path = self._path(record.address)
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _SAFELY, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(
                {
                    "schema": _SCHEMA,
                    "address": record.address,
                    "vendor_id": record.vendor_id,
                    "device_id": record.device_id,
                    "driver": record.state.driver,
                    "driver_override": record.state.driver_override,
                },
                file,
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.new", path)
        _sync_folder(self._records_dir)


def _parse(document: object, address: str) -> Record:
    if not isinstance(document, dict) or document["schema"] != _SCHEMA or document["address"] != address:
        raise ValueError("not a record of this device")
    return Record(
        address=address,
        vendor_id=_number(document["vendor_id"]),
        device_id=_number(document["device_id"]),
        state=DeviceState(_driver(document["driver"]), _driver(document["driver_override"])),
    )


def _number(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= 0xFFFF:
        raise ValueError(f"{value!r} is not an id")
    return value


def _driver(value: object) -> str | None:
    """A driver's name becomes part of a path: it must not lead elsewhere."""
    if value is None:
        return None
    if not isinstance(value, str) or not is_driver_name(value):
        raise ValueError(f"{value!r} is not a driver's name")
    return value


def is_driver_name(name: str) -> bool:
    """Say whether a name can be that of a driver: one part of a path, printable, no space around."""
    return (
        bool(name)
        and name.isprintable()
        and name == name.strip()
        and "/" not in name
        and name not in (".", "..")
    )


@contextlib.contextmanager
def _unusable(folder: str) -> Iterator[None]:
    """Say of errors in a block that the state folder cannot be used."""
    try:
        yield
    except OSError as error:
        raise VfioToolError(
            f"the state folder {folder} cannot be written: {error.strerror}",
            hint="run it as root, or name another folder with --state-dir",
        ) from error


def _make_private(folder: str) -> None:
    with _unusable(folder):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        status = os.lstat(folder)
    if status.st_uid != os.geteuid() or status.st_mode & 0o170000 != 0o040000 or status.st_mode & 0o022:
        remedy = "run it as root" if os.geteuid() else "remove it"
        raise VfioToolError(
            f"the state folder {folder} is not a folder that only its user can write",
            hint=f"{remedy}, or name another folder with --state-dir",
        )


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _damaged(path: str, cause: str) -> VfioToolError:
    return VfioToolError(
        f"the journal's record {path} cannot be understood ({cause})",
        hint="look at it; if it is of no use, remove it and bind the device as you wish it",
    )
