/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registers of a device that are mapped into this process, accessed by exact width.
 *
 * An access is checked as a whole before the device sees any of it. It gives -EBADF where the window is
 * closed, -EAGAIN where it sleeps, -ERANGE outside of it, -EINVAL at an address that is no multiple of
 * the width, -EPERM for a write that the window or a guard of it forbids, and -EOVERFLOW for a value that
 * is too large. Widths are in bytes: 1, 2, 4 or 8. Numbers are in PCI's byte order, which is little endian.
 *
 * Memory that was written before a register is written is there for the device by then, and memory
 * that is read after a register was read is what the device wrote before: as with the kernel's readl()
 * and writel().
 *
 * Any thread may access, revoke, put to sleep and wake a window at any time. vt_window_unmap is for when
 * nobody does any longer.
 */
#ifndef VFIOTOOL_MMIO_H
#define VFIOTOOL_MMIO_H

#include <stdint.h>

/* declarations */

enum {
	VT_WINDOW_WRITE = 1,
	VT_WINDOW_CLOSED = 2,
	VT_WINDOW_ASLEEP = 4,
	VT_WINDOW_MAPPED = 8, /* by vt_window_map; another's memory otherwise */
};

/* No write reaches a byte of [start, end), counted from the window's start. */
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

/* Map the pages of a file that hold these bytes; the window is of these bytes alone. */
int vt_window_map(struct vt_window *window, int fd, uint64_t offset, uint64_t size, int write);

/* Close it, and put plain memory in the device's place: accesses that are under way reach that. */
int vt_window_revoke(struct vt_window *window);

/* The same for a while: the kernel answers accesses to a device that is off with SIGBUS. */
int vt_window_sleep(struct vt_window *window);

/* Map the file again where it was. A window that was revoked stays so. */
int vt_window_wake(struct vt_window *window, int fd, uint64_t offset);

/* Free the addresses; a second time does nothing. */
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
 * Copy `size` bytes, in their order, by accesses of one width in ascending order; `size` is a multiple
 * of it. A block is at consecutive addresses, a fifo behind one.
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
