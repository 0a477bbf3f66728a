"""The operations of a group's life cycle, each declared once.

``Kind`` names an operation, and its ``Declaration`` states what the other modules derive from: the arguments
of its call in a trace, the fds that it needs, opens and closes, the process that executes it, its edge in the
diagram and its form in a script. Only two things are written elsewhere, each as one method with the
operation's name: the rule in ``Model``, and the system call in ``group.fds.GroupFds``, which runs and scripts
execute.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


class Bound(enum.Enum):
    """The kind of driver that a member is bound to."""

    NONE = "none"
    HOST = "host"
    """A driver that lets the device do DMA for the kernel."""
    VFIO = "vfio"
    STUB = "stub"
    """pci-stub: a driver that does nothing, and does not claim the device's DMA."""


class Fd(enum.Enum):
    """The kinds of file descriptors by which userspace uses a group."""

    CONTAINER = "container"
    GROUP = "group"
    DEVICE = "device"
    """A member, from the group's GET_DEVICE_FD."""
    CDEV = "cdev"
    """A member, from its own node."""


Argument = Literal["container", "member", "to"]
"""An argument of a call: the index of a container, the index of a member, the driver of a bind."""


@dataclass(frozen=True, slots=True)
class ScriptForm:
    """The function that executes an operation in a script.

    ``function`` is a method of ``group.fds.GroupFds``, or a function of ``reproduce.script_runtime``.
    ``arguments`` names its arguments, which ``reproduce.script_steps`` writes; most are the call's. If
    ``returns_value`` is set, the function's result is compared with the expected value. If ``raises_note`` is
    set, the function itself checks what no errno shows. ``in_ioas`` is the form for an IOAS in place of a
    container. ``begins`` is the form that starts an operation that blocks, and does not wait for its end.
    """

    function: str
    arguments: tuple[str, ...] = ()
    returns_value: bool = False
    raises_note: bool = False
    in_ioas: ScriptForm | None = None
    begins: ScriptForm | None = None


class Kind(enum.Enum):
    """The kinds of operations. The value is the name in a trace: of an ioctl, the kernel's without prefix.

    ``Model.operations`` yields operations in this order, by which a seed decides: append, do not reorder.
    """

    OPEN_CONTAINER = "open container"
    CLOSE_CONTAINER = "close container"
    SET_IOMMU = "SET_IOMMU"
    SET_CONTAINER = "SET_CONTAINER"
    CLOSE_GROUP = "close group"
    GET_STATUS = "GET_STATUS"
    UNSET_CONTAINER = "UNSET_CONTAINER"
    OPEN_GROUP = "open group"
    GET_DEVICE_FD = "GET_DEVICE_FD"
    CLOSE_DEVICE = "close device"
    UNBIND = "unbind"
    OPEN_CDEV = "open cdev"
    BIND_IOMMUFD = "BIND_IOMMUFD"
    ATTACH_IOMMUFD_PT = "ATTACH_IOMMUFD_PT"
    CLOSE_CDEV = "close cdev"
    BIND = "bind"

    @property
    def declaration(self) -> Declaration:
        """Return the declaration of the kind."""
        return _DECLARATIONS[self]

    @property
    def method(self) -> str:
        """Return the name of the method of ``Model`` that has the rule of the kind."""
        return f"_{self.name.lower()}"


@dataclass(frozen=True, slots=True)
class Declaration:
    """The properties of a kind.

    ``takes`` are the arguments of its call. ``by`` is the fd that it uses: the operation is possible while
    that fd is open, and the process that opened the fd executes the operation. An operation without ``by``
    can be executed by any process, which the call's ``process`` names; but the first process opens all nodes
    of single devices. ``opens`` is the fd that the operation opens. ``undoes`` is the kind whose effect it
    ends. If ``is_drawn`` is set, the diagram has an edge for it.
    """

    takes: tuple[Argument, ...]
    script: ScriptForm
    by: Fd | None = None
    opens: Fd | None = None
    undoes: Kind | None = None
    is_drawn: bool = False

    @property
    def closes(self) -> Fd | None:
        """Return the kind of fd that the operation closes."""
        return None if self.undoes is None else self.undoes.declaration.opens

    @property
    def returns_value(self) -> bool:
        """Return True if the result of the system call is compared with an expected value."""
        return self.script.returns_value

    @property
    def takes_process(self) -> bool:
        """Return True if any process can execute the operation."""
        return self.by is None and self.opens is not Fd.CDEV


_DECLARATIONS: Mapping[Kind, Declaration] = {
    Kind.OPEN_CONTAINER: Declaration(
        ("container",), ScriptForm("open_container", ("container",)), opens=Fd.CONTAINER
    ),
    Kind.CLOSE_CONTAINER: Declaration(
        ("container",),
        ScriptForm("close_container", ("container",)),
        by=Fd.CONTAINER,
        undoes=Kind.OPEN_CONTAINER,
    ),
    Kind.SET_IOMMU: Declaration(
        ("container",), ScriptForm("set_iommu", ("container",)), by=Fd.CONTAINER, is_drawn=True
    ),
    Kind.SET_CONTAINER: Declaration(
        ("container",), ScriptForm("set_container", ("container",)), by=Fd.GROUP, is_drawn=True
    ),
    Kind.CLOSE_GROUP: Declaration(
        (), ScriptForm("close_group"), by=Fd.GROUP, undoes=Kind.OPEN_GROUP, is_drawn=True
    ),
    Kind.GET_STATUS: Declaration((), ScriptForm("get_status", returns_value=True), by=Fd.GROUP),
    Kind.UNSET_CONTAINER: Declaration(
        (), ScriptForm("unset_container"), by=Fd.GROUP, undoes=Kind.SET_CONTAINER, is_drawn=True
    ),
    Kind.OPEN_GROUP: Declaration((), ScriptForm("open_group", ("group",)), opens=Fd.GROUP, is_drawn=True),
    Kind.GET_DEVICE_FD: Declaration(
        ("member",),
        ScriptForm("get_device_fd", ("member",)),
        by=Fd.GROUP,
        opens=Fd.DEVICE,
        is_drawn=True,
    ),
    Kind.CLOSE_DEVICE: Declaration(
        ("member",),
        ScriptForm("close_device", ("member",)),
        by=Fd.DEVICE,
        undoes=Kind.GET_DEVICE_FD,
        is_drawn=True,
    ),
    Kind.UNBIND: Declaration(
        ("member",),
        ScriptForm("unbind", ("member",), begins=ScriptForm("begin_unbind", ("member",), raises_note=True)),
        undoes=Kind.BIND,
        is_drawn=True,
    ),
    Kind.OPEN_CDEV: Declaration(("member",), ScriptForm("open_cdev", ("member",)), opens=Fd.CDEV),
    Kind.BIND_IOMMUFD: Declaration(("member",), ScriptForm("bind_iommufd", ("member",)), by=Fd.CDEV),
    Kind.ATTACH_IOMMUFD_PT: Declaration(
        ("member",), ScriptForm("attach_iommufd_pt", ("member",)), by=Fd.CDEV
    ),
    Kind.CLOSE_CDEV: Declaration(
        ("member",), ScriptForm("close_cdev", ("member",)), by=Fd.CDEV, undoes=Kind.OPEN_CDEV
    ),
    Kind.BIND: Declaration(("member", "to"), ScriptForm("bind", ("member", "to")), is_drawn=True),
}


@dataclass(frozen=True, slots=True)
class Operation:
    """``member`` and ``container`` are indices, ``to`` is the driver of a bind; a kind has some of them."""

    kind: Kind
    member: int = 0
    container: int = 0
    to: Bound = Bound.NONE

    def __str__(self) -> str:
        texts: dict[Argument, str] = {
            "container": str(self.container),
            "member": f"member {self.member}",
            "to": f"to {self.to.value}",
        }
        return " ".join([self.kind.value, *(texts[name] for name in self.kind.declaration.takes)])

    def index(self, fd: Fd) -> int:
        """Return which fd of a kind the operation uses: the index of the container or of the member."""
        if fd is Fd.GROUP:
            return 0
        return self.container if fd is Fd.CONTAINER else self.member


def kinds_taking(*arguments: Argument) -> tuple[Kind, ...]:
    """Return the kinds whose calls have exactly these arguments."""
    return tuple(kind for kind in Kind if kind.declaration.takes == arguments)
