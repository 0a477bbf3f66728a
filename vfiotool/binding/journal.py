"""The journal: each device's state before vfiotool's first change, kept until the device is back in it.

One file per device, below the state folder. Records of an earlier boot are ignored: drivers, overrides
and policies do not outlive a boot.
"""

from __future__ import annotations

import json
import os

from vfiotool.binding.device_record import DeviceRecord, from_document, to_document
from vfiotool.binding.state_dir import damaged, make_private, read_own, remove_own, replace_own, unusable
from vfiotool.errors import VfioToolError
from vfiotool.host.pending_unbinds import STATE_DIR, pending_dir, pending_writer
from vfiotool.host.tree import Tree
from vfiotool.pci.address import is_address, sort_key

_SCHEMA = "vfiotool.journal/1"


class Journal:
    """The records of this boot below a state folder. To change a record, hold its device's lock."""

    def __init__(self, state_dir: str = STATE_DIR, *, boot: str = "") -> None:
        self.state_dir = state_dir
        self.boot = boot
        self._records = f"{state_dir}/journal"
        self.locks = f"{state_dir}/locks"
        self.transactions = f"{state_dir}/transactions"

    def prepare(self) -> None:
        """Create the folders that are missing.

        Raises:
            VfioToolError: the state folder cannot be created, or another user owns it.
        """
        pending = pending_dir(self.state_dir)
        for folder in (self.state_dir, self._records, self.locks, self.transactions, pending):
            make_private(folder)

    def record(self, record: DeviceRecord) -> None:
        """Write the record of a device.

        Raises:
            VfioToolError: the file cannot be written.
        """
        document = {"schema": _SCHEMA, "boot": self.boot, **to_document(record)}
        with unusable(self.state_dir):
            replace_own(self._path(record.address), json.dumps(document))

    def find(self, address: str) -> DeviceRecord | None:
        """Return the record of an address, or ``None``.

        Raises:
            VfioToolError: the record cannot be parsed.
        """
        path = self._path(address)
        try:
            document = json.loads(read_own(path))
            if document["schema"] != _SCHEMA or document["address"] != address:
                raise ValueError("not a record of this device")
            return from_document(document) if document["boot"] == self.boot else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise damaged(path, error.strerror or str(error)) from error
        except VfioToolError:
            raise
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise damaged(path, f"{type(error).__name__}: {error}") from error

    def addresses(self) -> list[str]:
        """Return the addresses of all records, in order."""
        try:
            names = os.listdir(self._records)
        except FileNotFoundError:
            return []
        found = [name.removesuffix(".json") for name in names if name.endswith(".json")]
        return sorted((name for name in found if is_address(name)), key=sort_key)

    def forget(self, address: str) -> None:
        """Remove a record; it need not exist."""
        with unusable(self.state_dir):
            remove_own(self._path(address))

    def _path(self, address: str) -> str:
        return f"{self._records}/{address}.json"


def boot_id(tree: Tree) -> str:
    """Return the id of this boot of the machine."""
    return tree.find("/proc/sys/kernel/random/boot_id") or ""


def stale_files(tree: Tree, journal: Journal) -> list[tuple[str, str]]:
    """Return the files that are of no use any more, each with the address of its device.

    These are new files whose writer was killed before it renamed them, and notes of pending writes that
    have returned. Hold the device's lock before you rely on it: without the lock, another process may
    still use the file.
    """
    pending = pending_dir(journal.state_dir)
    found = []
    for folder in (f"{journal.state_dir}/journal", journal.transactions):
        names = os.listdir(folder) if os.path.isdir(folder) else []
        found += [(f"{folder}/{name}", name.partition(".json")[0]) for name in names if name.endswith(".new")]
    for name in tree.find_names(pending):
        if pending_writer(tree, journal.state_dir, name) is None:
            found.append((tree.path(f"{pending}/{name}"), name))
    return [(path, address) for path, address in found if is_address(address)]
