/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring_reads DISK DEPTH SECONDS: print how many random 4K reads a second the kernel's driver makes with
 * io_uring: without a library, with registered buffers and file, and with one system call for all
 * submissions and completions of a round.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 4096 };

struct ring {
	int fd;
	unsigned int *sq_tail, *sq_array, sq_mask;
	unsigned int *cq_head, *cq_tail, cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
};

struct reads {
	char *memory;
	unsigned int *idle; /* the free pieces of memory, and their number */
	unsigned int count;
	uint64_t pages; /* of the disk */
	uint64_t random;
	uint64_t done;
};

static void require(int is_well, const char *what)
{
	if (is_well)
		return;
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static char *shared(int fd, size_t size, uint64_t offset)
{
	void *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);

	require(address != MAP_FAILED, "mmap");
	return address;
}

static struct ring set_up(unsigned int depth)
{
	struct io_uring_params params = { 0 };
	int fd = syscall(__NR_io_uring_setup, depth, &params);
	char *sq, *cq;

	require(fd >= 0, "io_uring_setup");
	sq = shared(fd, params.sq_off.array + params.sq_entries * sizeof(unsigned int), IORING_OFF_SQ_RING);
	cq = shared(fd, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe),
		    IORING_OFF_CQ_RING);
	return (struct ring){
		.fd = fd,
		.sq_tail = (unsigned int *)(sq + params.sq_off.tail),
		.sq_array = (unsigned int *)(sq + params.sq_off.array),
		.sq_mask = *(unsigned int *)(sq + params.sq_off.ring_mask),
		.cq_head = (unsigned int *)(cq + params.cq_off.head),
		.cq_tail = (unsigned int *)(cq + params.cq_off.tail),
		.cq_mask = *(unsigned int *)(cq + params.cq_off.ring_mask),
		.sqes = (void *)shared(fd, params.sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES),
		.cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes),
	};
}

static void hand_over(const struct ring *ring, int disk, char *memory, unsigned int depth)
{
	struct iovec all = { memory, (size_t)depth * SIZE };

	require(!syscall(__NR_io_uring_register, ring->fd, IORING_REGISTER_BUFFERS, &all, 1), "buffers");
	require(!syscall(__NR_io_uring_register, ring->fd, IORING_REGISTER_FILES, &disk, 1), "files");
}

/* Fill the queue; returns how many reads were added. */
static unsigned int fill(const struct ring *ring, struct reads *reads)
{
	unsigned int tail = *ring->sq_tail, before = tail;

	for (; reads->count; tail++) {
		unsigned int piece = reads->idle[--reads->count], at = tail & ring->sq_mask;

		reads->random ^= reads->random << 13;
		reads->random ^= reads->random >> 7;
		reads->random ^= reads->random << 17;
		ring->sqes[at] = (struct io_uring_sqe){
			.opcode = IORING_OP_READ_FIXED,
			.flags = IOSQE_FIXED_FILE,
			.off = reads->random % reads->pages * SIZE,
			.addr = (uintptr_t)(reads->memory + (size_t)piece * SIZE),
			.len = SIZE,
			.user_data = piece,
		};
		ring->sq_array[at] = at;
	}
	__atomic_store_n(ring->sq_tail, tail, __ATOMIC_RELEASE);
	return tail - before;
}

static void reap(const struct ring *ring, struct reads *reads)
{
	unsigned int head = *ring->cq_head, tail = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE);

	for (; head != tail; head++) {
		const struct io_uring_cqe *done = &ring->cqes[head & ring->cq_mask];

		require(done->res == SIZE, "read");
		reads->idle[reads->count++] = done->user_data;
		reads->done++;
	}
	__atomic_store_n(ring->cq_head, head, __ATOMIC_RELEASE);
}

int main(int argc, char **argv)
{
	unsigned int depth = argc == 4 ? strtoul(argv[2], NULL, 10) : 0, to_submit;
	int disk = argc == 4 ? open(argv[1], O_RDONLY | O_DIRECT) : -1;
	struct reads reads = { .random = 88172645463325252ull };
	double begun, end, time;
	struct ring ring;
	uint64_t size;

	require(disk >= 0 && depth && !ioctl(disk, BLKGETSIZE64, &size), "uring_reads DISK DEPTH SECONDS");
	reads.pages = size / SIZE;
	reads.memory = aligned_alloc(SIZE, (size_t)depth * SIZE);
	reads.idle = calloc(depth, sizeof(*reads.idle));
	memset(reads.memory, 1, (size_t)depth * SIZE);
	while (reads.count < depth) {
		reads.idle[reads.count] = reads.count;
		reads.count++;
	}
	ring = set_up(depth);
	hand_over(&ring, disk, reads.memory, depth);
	begun = time = now();
	end = begun + strtod(argv[3], NULL);
	for (uint64_t look = 0; look % 64 || (time = now()) < end; look++) {
		to_submit = fill(&ring, &reads);
		require(syscall(__NR_io_uring_enter, ring.fd, to_submit, 1, IORING_ENTER_GETEVENTS, NULL, 0) >= 0,
			"io_uring_enter");
		reap(&ring, &reads);
	}
	printf("%.0f\n", reads.done / (time - begun));
	return 0;
}
