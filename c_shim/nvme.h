/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVMe queue pairs: a submission queue for commands, and a completion queue (NVM Express Base
 * Specification 2.0, sections 3.3.1 and 4.2).
 *
 * One thread at a time may use a queue pair. Any thread may set `closed`: a running call checks it between
 * two rounds, when the doorbell was rung for all commands in the submission queue. Functions that write
 * doorbells return the errors of vt_write32 if the doorbells cannot be reached, and
 *
 * -ECANCELED: the queue was closed.
 * -EBADMSG: the controller completed a command that it was not given: the queue cannot be used any more.
 *
 * Functions with a deadline poll memory until the monotonic clock reaches `deadline_ns`. If it is 0, or
 * the queue has interrupts, they poll once: the caller waits for the interrupt. The caller must also
 * check the controller's registers for a failure.
 */
#ifndef VFIOTOOL_NVME_H
#define VFIOTOOL_NVME_H

#include <stdint.h>

/* declarations */

enum {
	VT_NVME_MAX_ENTRIES = 32768,
	VT_NVME_NOT_DONE = 0xffff, /* no valid status, which has 15 bits */
};

/* A command identifier: in use by a command that the controller has, or free. */
struct vt_nvme_slot {
	uint64_t op; /* index of the op in its job */
	uint32_t next_free;
	uint32_t in_use;
};

struct vt_nvme_queue {
	/* Set by the owner before vt_nvme_queue_init. */
	struct vt_window *registers;
	uint64_t sq_doorbell; /* register offsets */
	uint64_t cq_doorbell;
	uint64_t sq; /* addresses in this process: `entries` of 64 bytes, and of 16 bytes, zeroed */
	uint64_t cq;
	uint64_t lists; /* a PRP list for each slot, `list_entries` long; no list crosses a page */
	uint64_t lists_iova;
	struct vt_nvme_slot *slots; /* entries - 1: a queue with so many commands is full */
	uint32_t entries;
	uint32_t list_entries;
	uint32_t page_size; /* of the controller, CC.MPS */
	uint32_t nsid; /* the namespace of all ops */
	uint32_t block_shift; /* log2 of the block size */
	uint32_t interrupts; /* true if completions raise an interrupt */

	/* State, which the owner may read. */
	uint32_t closed;
	uint32_t in_flight;
	uint32_t sq_tail;
	uint32_t cq_head;
	uint32_t phase;
	uint32_t unacknowledged; /* completions taken since the last write of the completion doorbell */
	uint32_t next_free;
};

struct vt_nvme_completion {
	uint32_t result;
	uint16_t cid;
	uint16_t status; /* of the entry, without the phase */
};

/* A read or write of blocks, to or from contiguous IOVAs. */
struct vt_nvme_op {
	uint64_t lba;
	uint64_t iova;
	uint32_t blocks;
	uint16_t status;
	uint16_t opcode; /* 1: write, 2: read */
};

/* Ops to execute with up to `depth` in flight; all other fields start at 0. */
struct vt_nvme_job {
	struct vt_nvme_op *ops;
	uint64_t count;
	uint32_t depth;
	uint64_t submitted;
	uint64_t completed;
	uint64_t failed; /* completed with an error status */
};

/* Check and initialize a queue that the controller does not have yet. -EINVAL: it is malformed. */
int vt_nvme_queue_init(struct vt_nvme_queue *queue);

/*
 * Describe `size` bytes from an iova on by PRP entries (section 4.1.1), with a list of up to `max`
 * entries. -EINVAL: the size is 0, the iova is misaligned, or the list is too short.
 */
int vt_nvme_prps(uint64_t iova, uint64_t size, uint32_t page_size, uint64_t *list, uint64_t list_iova,
		 uint32_t max, uint64_t prps[2]);

/* Make an op for each lba; the data use `places` pieces of memory from an iova on, in turn. */
void vt_nvme_fill_ops(struct vt_nvme_op *ops, const uint64_t *lbas, uint64_t count, uint16_t opcode,
		      uint32_t blocks, uint64_t iova, uint64_t step, uint64_t places);

/* Submit a command of 64 bytes, and return its identifier; -ENOSPC: the queue is full. */
int vt_nvme_submit(struct vt_nvme_queue *queue, const void *command);

/* Submit as many ops as fit by one doorbell write; returns how many. -EINVAL: an op is malformed. */
int vt_nvme_submit_ops(struct vt_nvme_queue *queue, const struct vt_nvme_op *ops, uint32_t count,
		       uint16_t *cids);

/* Take up to `max` completions; returns how many, 0 if there is none by the deadline. */
int vt_nvme_poll(struct vt_nvme_queue *queue, struct vt_nvme_completion *done, uint32_t max,
		 int64_t deadline_ns);

/* Count the commands that the controller has not completed, without taking completions. */
uint32_t vt_nvme_unanswered(const struct vt_nvme_queue *queue);

/*
 * Execute a job; each op has its status then. -ETIMEDOUT: the job was not complete by the deadline; another
 * call continues it. -EBUSY: the queue has commands of others. -EINVAL: an op is malformed, and none was
 * submitted.
 */
int vt_nvme_run(struct vt_nvme_queue *queue, struct vt_nvme_job *job, int64_t deadline_ns);

/* end of declarations */

#endif
