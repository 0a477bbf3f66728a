/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* The work of a thread at a time: some milliseconds, so that it pays to start a thread. */
#define PORTION (16ULL << 20)
#define MAX_THREADS 64

struct prefault {
	uint64_t address;
	uint64_t size;
	uint64_t portion;
	uint64_t page_size;
	bool can_populate;
	_Atomic uint64_t next; /* offset from the address */
	_Atomic int error;
};

static int populate(uint64_t address, uint64_t size)
{
	int result;

	do
		result = madvise((void *)(uintptr_t)address, size, MADV_POPULATE_WRITE);
	while (result < 0 && errno == EINTR);
	return result < 0 ? -errno : 0;
}

/*
 * For kernels before 5.14. To find the key of a futex that processes may share, the kernel faults its page
 * in for writing. Unlike a store, FUTEX_WAKE changes nothing, returns an errno instead of a signal if the
 * page cannot be made present, and does not reach a device's registers.
 */
static int touch(uint64_t address, uint64_t size, uint64_t page_size)
{
	for (uint64_t end = address + size; address < end; address += page_size)
		if (syscall(SYS_futex, (void *)(uintptr_t)address, FUTEX_WAKE, 0, NULL, NULL, 0) < 0)
			return -errno;
	return 0;
}

/* Take portions until none is left, or a thread has failed. */
static void *work(void *argument)
{
	struct prefault *job = argument;

	while (!atomic_load(&job->error)) {
		uint64_t at = atomic_fetch_add(&job->next, job->portion);
		uint64_t address = job->address + at;
		uint64_t size = job->portion;
		int error;

		if (at >= job->size)
			break;
		if (size > job->size - at)
			size = job->size - at;
		error = job->can_populate ? populate(address, size) : touch(address, size, job->page_size);
		if (error)
			atomic_store(&job->error, error);
	}
	return NULL;
}

static unsigned int useful_threads(unsigned int wanted, uint64_t portions)
{
	cpu_set_t cpus;
	/* It fails only on machines with more CPUs than the set can hold. */
	unsigned int most = sched_getaffinity(0, sizeof(cpus), &cpus) ? MAX_THREADS : CPU_COUNT(&cpus);

	if (wanted && wanted < most)
		most = wanted;
	if (most > MAX_THREADS)
		most = MAX_THREADS;
	return portions < most ? (unsigned int)portions : most;
}

/* Work in this thread and in helpers; if none can be started, this thread does all the work. */
static void share(struct prefault *job, unsigned int threads)
{
	pthread_t helpers[MAX_THREADS];
	unsigned int started = 0;
	sigset_t all, before;

	/* Signals must be delivered to the program's own threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (started + 1 < threads && !pthread_create(&helpers[started], NULL, work, job))
		started++;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	work(job);
	while (started)
		pthread_join(helpers[--started], NULL);
}

int vt_prefault(uint64_t address, uint64_t size, uint64_t page_size, unsigned int threads)
{
	struct prefault job = {
		.address = address,
		.size = size,
		.portion = page_size > PORTION ? page_size : PORTION,
		.page_size = page_size,
		/* For 0 bytes, madvise only checks that the kernel knows the advice. */
		.can_populate = !madvise(NULL, 0, MADV_POPULATE_WRITE),
	};

	if (!page_size || page_size & (page_size - 1) || (address | size) & (page_size - 1))
		return -EINVAL;
	if (address + size < address)
		return -EINVAL;
	share(&job, useful_threads(threads, size / job.portion + !!(size % job.portion)));
	return atomic_load(&job.error);
}
