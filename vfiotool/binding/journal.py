"""What a device was before vfiotool first changed it, kept until it is that again.

One file a device below the state folder. A record of an earlier boot says nothing any more: drivers,
overrides and policies do not outlive a boot.
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
    """The records below a state folder, of this boot. Whoever changes a record holds its device's lock."""

    def __init__(self, state_dir: str = STATE_DIR, *, boot: str = "") -> None:
        self.state_dir = state_dir
        self.boot = boot
        self._records = f"{state_dir}/journal"
        self.locks = f"{state_dir}/locks"
        self.transactions = f"{state_dir}/transactions"

    def prepare(self) -> None:
        """Make the folders where they are missing.

        Raises:
            VfioToolError: the state folder cannot be made, or is not this user's own.
        """
        pending = pending_dir(self.state_dir)
        for folder in (self.state_dir, self._records, self.locks, self.transactions, pending):
            make_private(folder)

    def record(self, stored: DeviceRecord) -> None:
        """Keep what a device was.

        Raises:
            VfioToolError: it cannot be written.
        """
        document = {"schema": _SCHEMA, "boot": self.boot, **to_document(stored)}
        with unusable(self.state_dir):
            replace_own(self._path(stored.address), json.dumps(document))

    def find(self, address: str) -> DeviceRecord | None:
        """Return the record of an address, or ``None``.

        Raises:
            VfioToolError: the record cannot be understood.
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
    """Return what names this boot of the machine: with its end, all states are gone."""
    return tree.find("/proc/sys/kernel/random/boot_id") or ""


def debris(tree: Tree, journal: Journal) -> list[tuple[str, str]]:
    """Return the files that say nothing, each with the device that it is about.

    Those are files whose writer was killed before they took their names, and notes of writes that
    have returned. Of a device whose lock is not held they may yet be somebody's.
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
