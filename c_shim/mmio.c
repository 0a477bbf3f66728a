/* SPDX-License-Identifier: Apache-2.0 */
#define _DEFAULT_SOURCE
#include "mmio.h"

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

_Static_assert(sizeof(void *) == 8, "a 64-bit register takes one access");

/* Device memory is mapped uncached, so only the order of accesses needs barriers. */
#if defined(__x86_64__)
#define BEFORE_WRITE() __asm__ volatile("" ::: "memory")
#define AFTER_READ() __asm__ volatile("" ::: "memory")
#elif defined(__aarch64__)
#define BEFORE_WRITE() __asm__ volatile("dmb oshst" ::: "memory")
#define AFTER_READ() __asm__ volatile("dmb oshld" ::: "memory")
#elif defined(__riscv)
#define BEFORE_WRITE() __asm__ volatile("fence w, o" ::: "memory")
#define AFTER_READ() __asm__ volatile("fence i, ir" ::: "memory")
#else
#define BEFORE_WRITE() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define AFTER_READ() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#endif

/* A negative offset becomes a large offset, which is outside. */
static inline int check(const struct vt_window *window, uint64_t offset, uint64_t size, uint64_t width)
{
	uint32_t flags = __atomic_load_n(&window->flags, __ATOMIC_ACQUIRE);

	if (flags & (VT_WINDOW_CLOSED | VT_WINDOW_ASLEEP))
		return flags & VT_WINDOW_CLOSED ? -EBADF : -EAGAIN;
	if (size > window->size || offset > window->size - size)
		return -ERANGE;
	return (window->base + offset) & (width - 1) ? -EINVAL : 0;
}

static inline int check_write(const struct vt_window *window, uint64_t offset, uint64_t size,
			      uint64_t width)
{
	int result = check(window, offset, size, width);

	if (result < 0)
		return result;
	if (!(window->flags & VT_WINDOW_WRITE))
		return -EPERM;
	for (int i = 0; i < 2; i++)
		if (offset < window->guards[i].end && offset + size > window->guards[i].start)
			return -EPERM;
	return 0;
}

#define LOAD(type, address) (*(const volatile type *)(uintptr_t)(address))
#define STORE(type, address, value) (*(volatile type *)(uintptr_t)(address) = (value))

#define READ(bits, to_cpu)									\
	int64_t vt_read##bits(const struct vt_window *window, int64_t offset)			\
	{											\
		int result = check(window, offset, bits / 8, bits / 8);				\
		uint##bits##_t value;								\
												\
		if (result < 0)									\
			return result;								\
		value = to_cpu(LOAD(uint##bits##_t, window->base + offset));			\
		AFTER_READ();									\
		return value;									\
	}

#define WRITE(bits, to_device)									\
	int vt_write##bits(const struct vt_window *window, int64_t offset, uint64_t value)	\
	{											\
		int result = check_write(window, offset, bits / 8, bits / 8);			\
												\
		if (result < 0)									\
			return result;								\
		if (value != (uint##bits##_t)value)						\
			return -EOVERFLOW;							\
		BEFORE_WRITE();									\
		STORE(uint##bits##_t, window->base + offset, to_device((uint##bits##_t)value));	\
		return 0;									\
	}

READ(8, )
READ(16, le16toh)
READ(32, le32toh)

WRITE(8, )
WRITE(16, htole16)
WRITE(32, htole32)
WRITE(64, htole64)

int vt_read64(const struct vt_window *window, int64_t offset, uint64_t *value)
{
	int result = check(window, offset, 8, 8);

	if (result < 0)
		return result;
	*value = le64toh(LOAD(uint64_t, window->base + offset));
	AFTER_READ();
	return 0;
}

/* The buffer of a copy may be misaligned, hence memcpy(). */
#define COPY_FROM(type)								\
	for (; count; count--, from += step, to += sizeof(type)) {		\
		type value = LOAD(type, from);					\
										\
		memcpy(to, &value, sizeof(value));				\
	}

#define COPY_TO(type)								\
	for (; count; count--, to += step, from += sizeof(type)) {		\
		type value;							\
										\
		memcpy(&value, from, sizeof(value));				\
		STORE(type, to, value);						\
	}

static void copy_from(uint64_t from, unsigned char *to, uint64_t count, uint32_t width, uint64_t step)
{
	switch (width) {
	case 1: COPY_FROM(uint8_t) break;
	case 2: COPY_FROM(uint16_t) break;
	case 4: COPY_FROM(uint32_t) break;
	case 8: COPY_FROM(uint64_t) break;
	}
	AFTER_READ();
}

static void copy_to(uint64_t to, const unsigned char *from, uint64_t count, uint32_t width, uint64_t step)
{
	BEFORE_WRITE();
	switch (width) {
	case 1: COPY_TO(uint8_t) break;
	case 2: COPY_TO(uint16_t) break;
	case 4: COPY_TO(uint32_t) break;
	case 8: COPY_TO(uint64_t) break;
	}
}

static bool divides(uint32_t width, uint64_t size)
{
	return (width == 1 || width == 2 || width == 4 || width == 8) && size % width == 0;
}

static int read_many(const struct vt_window *window, int64_t offset, void *data, uint64_t size,
		     uint32_t width, bool fifo)
{
	int result;

	if (!divides(width, size))
		return -EINVAL;
	result = check(window, offset, fifo ? width : size, width);
	if (result == 0)
		copy_from(window->base + offset, data, size / width, width, fifo ? 0 : width);
	return result;
}

static int write_many(const struct vt_window *window, int64_t offset, const void *data, uint64_t size,
		      uint32_t width, bool fifo)
{
	int result;

	if (!divides(width, size))
		return -EINVAL;
	result = check_write(window, offset, fifo ? width : size, width);
	if (result == 0)
		copy_to(window->base + offset, data, size / width, width, fifo ? 0 : width);
	return result;
}

int vt_read_block(const struct vt_window *window, int64_t offset, void *data, uint64_t size,
		  uint32_t width)
{
	return read_many(window, offset, data, size, width, false);
}

int vt_read_fifo(const struct vt_window *window, int64_t offset, void *data, uint64_t size,
		 uint32_t width)
{
	return read_many(window, offset, data, size, width, true);
}

int vt_write_block(const struct vt_window *window, int64_t offset, const void *data, uint64_t size,
		   uint32_t width)
{
	return write_many(window, offset, data, size, width, false);
}

int vt_write_fifo(const struct vt_window *window, int64_t offset, const void *data, uint64_t size,
		  uint32_t width)
{
	return write_many(window, offset, data, size, width, true);
}

/* The whole pages that contain some bytes. */
struct pages {
	void *address;
	uint64_t size;
	uint64_t before; /* bytes of the first page before them */
};

static struct pages pages_of(uint64_t base, uint64_t size)
{
	uint64_t mask = (uint64_t)sysconf(_SC_PAGESIZE) - 1;
	uint64_t before = base & mask;

	return (struct pages){
		.address = (void *)(uintptr_t)(base - before),
		.size = (before + size + mask) & ~mask,
		.before = before,
	};
}

/* If there is no memory for a large writable window, read-only memory takes none. */
static int map_memory(const struct vt_window *window)
{
	struct pages pages = pages_of(window->base, window->size);
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;

	if (!(window->flags & VT_WINDOW_MAPPED))
		return 0;
	if (mmap(pages.address, pages.size, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED ||
	    mmap(pages.address, pages.size, PROT_READ, flags, -1, 0) != MAP_FAILED)
		return 0;
	return -errno;
}

static int rights(bool write)
{
	return PROT_READ | (write ? PROT_WRITE : 0);
}

int vt_window_map(struct vt_window *window, int fd, uint64_t offset, uint64_t size, int write)
{
	struct pages pages;
	void *address;

	if (!size || size > INT64_MAX)
		return -EINVAL;
	pages = pages_of(offset, size);
	address = mmap(NULL, pages.size, rights(write), MAP_SHARED, fd, (off_t)(offset - pages.before));
	if (address == MAP_FAILED)
		return -errno;
	window->base = (uint64_t)(uintptr_t)address + pages.before;
	window->size = size;
	window->flags = VT_WINDOW_MAPPED | (write ? VT_WINDOW_WRITE : 0);
	return 0;
}

int vt_window_revoke(struct vt_window *window)
{
	__atomic_fetch_or(&window->flags, VT_WINDOW_CLOSED, __ATOMIC_SEQ_CST);
	return map_memory(window);
}

int vt_window_sleep(struct vt_window *window)
{
	__atomic_fetch_or(&window->flags, VT_WINDOW_ASLEEP, __ATOMIC_SEQ_CST);
	return map_memory(window);
}

static int map_again(const struct vt_window *window, int fd, uint64_t offset)
{
	struct pages pages = pages_of(window->base, window->size);
	bool write = window->flags & VT_WINDOW_WRITE;

	if (!(window->flags & VT_WINDOW_MAPPED))
		return 0;
	if (mmap(pages.address, pages.size, rights(write), MAP_SHARED | MAP_FIXED, fd,
		 (off_t)(offset - pages.before)) == MAP_FAILED)
		return -errno;
	return 0;
}

int vt_window_wake(struct vt_window *window, int fd, uint64_t offset)
{
	int result = map_again(window, fd, offset);

	if (result < 0)
		return result;
	/* Another thread may have revoked the window before the file was mapped again. */
	if (__atomic_and_fetch(&window->flags, ~VT_WINDOW_ASLEEP, __ATOMIC_SEQ_CST) & VT_WINDOW_CLOSED)
		return map_memory(window);
	return 0;
}

int vt_window_unmap(struct vt_window *window)
{
	struct pages pages = pages_of(window->base, window->size);

	if (!(__atomic_exchange_n(&window->flags, VT_WINDOW_CLOSED, __ATOMIC_SEQ_CST) & VT_WINDOW_MAPPED))
		return 0;
	return munmap(pages.address, pages.size) < 0 ? -errno : 0;
}
