"""The C shim (see c_shim/shim.h): groups and containers, DMA mappings, registers, interrupts, NVMe queues.

Each function returns a value >= 0 or ``-errno``, keeps no state, and runs without the GIL. The headers in
c_shim document the functions.
"""

from cffi import FFI

class _Guard:
    """``struct vt_guard``."""

    start: int
    end: int

class _Window:
    """``struct vt_window *``."""

    base: int
    size: int
    flags: int
    guards: list[_Guard]

class _Word:
    """``uint64_t *``."""

    def __getitem__(self, index: int) -> int: ...

class _NvmeSlot:
    """``struct vt_nvme_slot``."""

    in_use: int

class _NvmeQueue:
    """``struct vt_nvme_queue *``."""

    registers: _Window
    sq_doorbell: int
    cq_doorbell: int
    sq: int
    cq: int
    lists: int
    lists_iova: int
    slots: list[_NvmeSlot]
    entries: int
    list_entries: int
    page_size: int
    nsid: int
    block_shift: int
    interrupts: int
    closed: int
    in_flight: int

class _NvmeCompletion:
    """``struct vt_nvme_completion``."""

    result: int
    cid: int
    status: int

class _NvmeOp:
    """``struct vt_nvme_op``."""

    lba: int
    iova: int
    blocks: int
    status: int
    opcode: int

class _NvmeJob:
    """``struct vt_nvme_job *``."""

    ops: list[_NvmeOp]
    count: int
    depth: int
    submitted: int
    completed: int
    failed: int

class _Lib:
    def vt_open(self, path: bytes) -> int: ...
    def vt_container_api_version(self, container: int) -> int: ...
    def vt_container_check_extension(self, container: int, extension: int) -> int: ...
    def vt_container_set_iommu(self, container: int, iommu: int) -> int: ...
    def vt_group_status(self, group: int) -> int: ...
    def vt_group_set_container(self, group: int, container: int) -> int: ...
    def vt_group_unset_container(self, group: int) -> int: ...
    def vt_group_device_fd(self, group: int, name: bytes) -> int: ...
    def vt_dma_map(self, fd: int, ioas: int, vaddr: int, iova: int, size: int, flags: int) -> int: ...
    def vt_dma_unmap(self, fd: int, ioas: int, iova: int, size: int) -> int: ...
    def vt_dma_unmap_all(self, fd: int, ioas: int) -> int: ...
    def vt_dma_map_ranges(
        self, fd: int, ioas: int, ranges: FFI.CData, count: int, flags: int, failed: FFI.CData
    ) -> int: ...
    def vt_dma_unmap_ranges(self, fd: int, ioas: int, ranges: FFI.CData, count: int) -> int: ...
    def vt_ranges_fill(self, ranges: FFI.CData, vaddrs: FFI.CData, count: int, size: int) -> None: ...
    def vt_ranges_lay_out(self, ranges: FFI.CData, count: int, iova: int, align: int) -> int: ...
    def vt_ranges_merge(self, ranges: FFI.CData, count: int, runs: FFI.CData) -> int: ...
    def vt_ranges_size(self, ranges: FFI.CData, count: int) -> int: ...
    def vt_ranges_spans(self, ranges: FFI.CData, count: int, spans: FFI.CData) -> int: ...
    def vt_prefault(self, address: int, size: int, page_size: int, threads: int) -> int: ...
    def vt_eventfd_wait(self, fd: int, deadline_ns: int) -> int: ...
    VT_WINDOW_WRITE: int
    VT_WINDOW_CLOSED: int
    VT_WINDOW_ASLEEP: int
    VT_WINDOW_MAPPED: int
    def vt_window_map(self, window: _Window, fd: int, offset: int, size: int, write: bool) -> int: ...
    def vt_window_revoke(self, window: _Window) -> int: ...
    def vt_window_sleep(self, window: _Window) -> int: ...
    def vt_window_wake(self, window: _Window, fd: int, offset: int) -> int: ...
    def vt_window_unmap(self, window: _Window | FFI.CData) -> int: ...
    def vt_read8(self, window: _Window, offset: int) -> int: ...
    def vt_read16(self, window: _Window, offset: int) -> int: ...
    def vt_read32(self, window: _Window, offset: int) -> int: ...
    def vt_read64(self, window: _Window, offset: int, value: _Word) -> int: ...
    def vt_write8(self, window: _Window, offset: int, value: int) -> int: ...
    def vt_write16(self, window: _Window, offset: int, value: int) -> int: ...
    def vt_write32(self, window: _Window, offset: int, value: int) -> int: ...
    def vt_write64(self, window: _Window, offset: int, value: int) -> int: ...
    def vt_read_block(self, window: _Window, offset: int, data: FFI.CData, size: int, width: int) -> int: ...
    def vt_read_fifo(self, window: _Window, offset: int, data: FFI.CData, size: int, width: int) -> int: ...
    def vt_write_block(self, window: _Window, offset: int, data: FFI.CData, size: int, width: int) -> int: ...
    def vt_write_fifo(self, window: _Window, offset: int, data: FFI.CData, size: int, width: int) -> int: ...
    VT_NVME_MAX_ENTRIES: int
    VT_NVME_NOT_DONE: int
    def vt_nvme_queue_init(self, queue: _NvmeQueue) -> int: ...
    def vt_nvme_prps(
        self,
        iova: int,
        size: int,
        page_size: int,
        prp_list: FFI.CData,
        list_iova: int,
        most: int,
        prps: FFI.CData,
    ) -> int: ...
    def vt_nvme_fill_ops(
        self,
        ops: list[_NvmeOp],
        lbas: FFI.CData,
        count: int,
        opcode: int,
        blocks: int,
        iova: int,
        step: int,
        places: int,
    ) -> None: ...
    def vt_nvme_submit(self, queue: _NvmeQueue, command: bytes) -> int: ...
    def vt_nvme_submit_ops(
        self, queue: _NvmeQueue, ops: list[_NvmeOp], count: int, cids: list[int]
    ) -> int: ...
    def vt_nvme_poll(
        self, queue: _NvmeQueue, done: list[_NvmeCompletion], most: int, deadline_ns: int
    ) -> int: ...
    def vt_nvme_unanswered(self, queue: _NvmeQueue) -> int: ...
    def vt_nvme_run(self, queue: _NvmeQueue, job: _NvmeJob, deadline_ns: int) -> int: ...

ffi: FFI
lib: _Lib
