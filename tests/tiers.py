"""Which tests run in which guests: the quick tier is that of ``scripts/test``, the full one of ``--full``.

A tier is a list of guests. Each names a kernel, a machine, and the tests that run there: files, folders or
single tests. Tests that are marked ``full`` run in the full tier alone, on the host and in guests;
``tests/unit/test_tiers.py`` checks that the full tier has every test.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
REFERENCE = "6.12"
"""The kernel on which each test that needs a guest runs."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A lab guest and the tests that run there, as arguments of pytest.

    ``part`` tells guests of one kernel and machine apart. ``needs`` names a QEMU device model that not every
    QEMU has: the guest runs in a QEMU that has it.
    """

    kernel: str
    machine: str
    tests: tuple[str, ...]
    part: str = ""
    needs: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.kernel, self.machine, self.part)))


def _files(pattern: str) -> tuple[str, ...]:
    return tuple(sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)))


KERNEL_LOG = "tests/lab/test_kernel_log.py"
NO_BUG = KERNEL_LOG + "::test_the_kernel_reports_no_bug"
SMOKE = "tests/lab/test_smoke.py"
BIND = SMOKE + "::test_bind_open_and_restore"
CONTRACT = ("tests/contract", KERNEL_LOG)
# Another IOMMU may change what vfiotool sees and how it binds.
SEE_AND_BIND = (
    BIND,
    "tests/lab/test_see.py",
    "tests/lab/test_lspci.py",
    "tests/lab/test_foreign.py",
    "tests/lab/test_doctor.py",
)
# Driving devices: in all modes, and with the kernel's own checks on.
DRIVE = (
    "tests/contract/test_opening.py",
    "tests/contract/test_vfio.py",
    "tests/contract/test_dma.py",
    "tests/contract/test_regions.py",
    "tests/contract/test_irqs.py",
    "tests/contract/test_reset.py",
    "tests/contract/test_features.py",
    "tests/contract/test_edu.py",
    "tests/contract/test_testdev.py",
    "tests/contract/test_nvme.py",
    "tests/contract/test_driver_contract.py",
    KERNEL_LOG,
)
# Runs of stress that judge a kernel. The others prove, on the reference, that stress finds defects.
STRESS = (
    "tests/lab/test_stress.py::test_all_passes",
    "tests/lab/test_stress.py::test_a_host_driver_that_comes_into_a_live_group",
)
# Two kernels with the same rules may still differ in these; all tests run on the reference.
BETWEEN_KERNELS = (
    SMOKE,
    *DRIVE,
    *_files("tests/lab/test_traps_*.py"),
    "tests/contract/test_binding.py",
    "tests/lab/test_bar_owners.py",
    "tests/lab/test_cycles.py",
    "tests/lab/test_foreign.py",
    "tests/lab/test_memory.py",
    "tests/lab/test_model.py",
    "tests/lab/test_namespaces.py",
    "tests/lab/test_power.py",
    "tests/lab/test_rules.py",
    "tests/lab/test_see.py",
    "tests/lab/test_stress_hotplug.py",
    "tests/lab/test_udev.py",
    "tests/lab/test_watch.py",
    "tests/lab/test_way_home.py",
    *STRESS,
)
# The oldest kernel has other rules, so these may differ too.
OLDEST = (
    KERNEL_LOG,
    "tests/contract/test_locking.py",
    "tests/contract/test_recovery.py",
    "tests/contract/test_sriov.py",
    "tests/lab/test_doctor.py",
    "tests/lab/test_refusals.py",
    "tests/lab/test_sriov.py",
    "tests/lab/test_stress_operations.py",
)
# The tests of the lab in two guests of like length.
LAB_STRESS = (
    *_files("tests/lab/test_stress*.py"),
    "tests/lab/test_cycles.py",
    "tests/lab/test_model.py",
    "tests/lab/test_rules.py",
    KERNEL_LOG,
)
LAB_REST = tuple(
    file
    for file in _files("tests/lab/test_*.py")
    if file not in LAB_STRESS[:-1] and "needs_guest" in (ROOT / file).read_text(encoding="utf-8")
)
IGB = Guest(
    REFERENCE,
    "default",
    ("tests/contract/test_igb.py", "tests/contract/test_driver_contract.py", "-k", "igb"),
    part="igb",
    needs="igb",
)

# Longest first: two guests run at a time.
FULL = (
    Guest(REFERENCE, "default", LAB_STRESS, part="stress"),
    Guest(REFERENCE, "default", LAB_REST, part="lab"),
    Guest(
        "debug",
        "default",
        (
            SMOKE,
            *DRIVE,
            "tests/lab/test_model.py",  # whose rules are those of cdevs there
            "tests/lab/test_rules.py",
            "tests/lab/test_stress.py::test_all_passes",
        ),
    ),
    Guest(REFERENCE, "default", CONTRACT, part="contract"),
    Guest("5.10", "default", BETWEEN_KERNELS),
    Guest("6.1", "default", BETWEEN_KERNELS),
    Guest("7", "default", BETWEEN_KERNELS),
    Guest("5.10", "default", OLDEST, part="oldest"),
    Guest("debug", "none", ("tests/lab/test_noiommu.py",)),
    Guest(REFERENCE, "amd", SEE_AND_BIND),
    Guest(REFERENCE, "virtio-iommu", SEE_AND_BIND),
    Guest(
        REFERENCE,
        "none",
        (
            SMOKE,
            "tests/lab/test_see.py",
            "tests/lab/test_lspci.py",
            "tests/lab/test_bad_input.py",
            "tests/lab/test_doctor.py",
            "tests/lab/test_traps_bind.py",
        ),
    ),
    IGB,
)

QUICK = (
    # The other tests there stress as much as the smoke does.
    Guest(REFERENCE, "default", ("tests/lab", "-k", "not test_a_minute_of_stress"), part="lab"),
    Guest("debug", "default", (SMOKE, NO_BUG)),
    Guest(REFERENCE, "default", CONTRACT, part="contract"),
    Guest("5.10", "default", (SMOKE, KERNEL_LOG)),
    Guest("6.1", "default", (SMOKE, KERNEL_LOG)),
    Guest("7", "default", (SMOKE, KERNEL_LOG)),
    # The other variants of the driver differ in interrupts alone.
    Guest(REFERENCE, "default", (*IGB.tests[:-1], "igb and not igb-msix"), IGB.part, IGB.needs),
    Guest(REFERENCE, "amd", (BIND,)),
    Guest(REFERENCE, "virtio-iommu", (BIND,)),
    Guest(REFERENCE, "none", (SMOKE,)),
)
