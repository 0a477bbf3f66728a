/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mapped registers of a device, accessed by exact width.
 *
 * An access is checked as a whole before the device sees any of it. It returns -EBADF if the window is
 * closed, -EAGAIN if the window sleeps, -ERANGE outside of the window, -EINVAL for an address that is not a
 * multiple of the width, -EPERM for a write that the window or a guard forbids, and -EOVERFLOW for a value
 * that is too large. Widths are in bytes: 1, 2, 4 or 8. Numbers are in PCI's byte order, little endian.
 *
 * Memory that was written before a register is written is visible to the device by then. Memory that is
 * read after a register was read has what the device wrote before. The kernel's readl() and writel() have
 * the same order.
 *
 * Any thread may access, revoke, put to sleep and wake a window at any time. vt_window_unmap must run
 * only when no thread does so any more.
 */
#ifndef VFIOTOOL_MMIO_H
#define VFIOTOOL_MMIO_H

#include <stdint.h>

/* declarations */

enum {
	VT_WINDOW_WRITE = 1,
	VT_WINDOW_CLOSED = 2,
	VT_WINDOW_ASLEEP = 4,
	VT_WINDOW_MAPPED = 8, /* by vt_window_map; otherwise the memory belongs to the caller */
};

/* Writes to the bytes [start, end), counted from the window's start, are refused. */
struct vt_guard {
	uint64_t start;
	uint64_t end;
};

struct vt_window {
	uint64_t base;
	uint64_t size;
	uint32_t flags;
	struct vt_guard guards[2];
};

/* Map the pages of a file that contain these bytes; the window has only these bytes. */
int vt_window_map(struct vt_window *window, int fd, uint64_t offset, uint64_t size, int write);

/* Close the window, and replace the device by plain memory, which running accesses then reach. */
int vt_window_revoke(struct vt_window *window);

/* The same until vt_window_wake: accesses to a device that is off end in SIGBUS. */
int vt_window_sleep(struct vt_window *window);

/* Map the file again at the same address. A revoked window stays revoked. */
int vt_window_wake(struct vt_window *window, int fd, uint64_t offset);

/* Free the addresses; later calls do nothing. */
int vt_window_unmap(struct vt_window *window);

int64_t vt_read8(const struct vt_window *window, int64_t offset);
int64_t vt_read16(const struct vt_window *window, int64_t offset);
int64_t vt_read32(const struct vt_window *window, int64_t offset);
int vt_read64(const struct vt_window *window, int64_t offset, uint64_t *value);

int vt_write8(const struct vt_window *window, int64_t offset, uint64_t value);
int vt_write16(const struct vt_window *window, int64_t offset, uint64_t value);
int vt_write32(const struct vt_window *window, int64_t offset, uint64_t value);
int vt_write64(const struct vt_window *window, int64_t offset, uint64_t value);

/*
 * Copy `size` bytes in ascending order by accesses of one width; `size` is a multiple of the width. A block
 * has consecutive addresses, a FIFO a single address.
 */
int vt_read_block(const struct vt_window *window, int64_t offset, void *data, uint64_t size,
		  uint32_t width);
int vt_read_fifo(const struct vt_window *window, int64_t offset, void *data, uint64_t size,
		 uint32_t width);
int vt_write_block(const struct vt_window *window, int64_t offset, const void *data, uint64_t size,
		   uint32_t width);
int vt_write_fifo(const struct vt_window *window, int64_t offset, const void *data, uint64_t size,
		  uint32_t width);

/* end of declarations */

#endif
