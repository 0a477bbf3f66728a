/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVMe queue pairs: commands go to the controller through one ring, completions come back through the
 * other (NVM Express Base Specification 2.0, sections 3.3.1 and 4.2).
 *
 * One thread at a time may use a queue; any thread may set `closed`, which a call that is under way sees
 * between two rounds: the controller has been told of all that was put into the ring. The functions that
 * talk to the controller give the errors of vt_write32 where its doorbells cannot be reached, and
 *
 * -ECANCELED: the queue was closed.
 * -EBADMSG: the controller completed a command that it was not given: the queue is of no use any more.
 *
 * Where they wait, they look at memory again and again until the monotonic clock shows `deadline_ns`; where
 * that is 0, and in a queue with interrupts, they look once: the interrupt is the caller's to await.
 * Whether the controller has failed meanwhile is for the caller to see in its registers.
 */
#ifndef VFIOTOOL_NVME_H
#define VFIOTOOL_NVME_H

#include <stdint.h>

/* declarations */

enum {
	VT_NVME_MAX_ENTRIES = 32768,
	VT_NVME_NOT_DONE = 0xffff, /* no status is: it has 15 bits */
};

/* A command identifier: that of a command which the controller has, or a free one. */
struct vt_nvme_slot {
	uint64_t op; /* of a job, by its index */
	uint32_t next_free;
	uint32_t in_use;
};

struct vt_nvme_queue {
	/* For the owner to fill in before vt_nvme_queue_init. */
	struct vt_window *registers;
	uint64_t sq_doorbell; /* offsets of registers */
	uint64_t cq_doorbell;
	uint64_t sq; /* addresses in this process: `entries` of 64 bytes, and as many of 16, which are zero */
	uint64_t cq;
	uint64_t lists; /* a PRP list for each slot, `list_entries` long; none of them crosses a page */
	uint64_t lists_iova;
	struct vt_nvme_slot *slots; /* one less than there are entries: a ring is full with that many */
	uint32_t entries;
	uint32_t list_entries;
	uint32_t page_size; /* the controller's, CC.MPS */
	uint32_t nsid; /* what the ops of this queue are for */
	uint32_t block_shift; /* log2 of its block size */
	uint32_t interrupts; /* it has them */

	/* For its owner to read. */
	uint32_t closed;
	uint32_t in_flight;
	uint32_t sq_tail;
	uint32_t cq_head;
	uint32_t phase;
	uint32_t untold; /* completions that were taken, and the controller does not know it */
	uint32_t next_free;
};

struct vt_nvme_completion {
	uint32_t result;
	uint16_t cid;
	uint16_t status; /* as in the entry, without the phase */
};

/* Blocks to read or write, to or from one piece of memory. */
struct vt_nvme_op {
	uint64_t lba;
	uint64_t iova;
	uint32_t blocks;
	uint16_t status;
	uint16_t opcode; /* 1: write, 2: read */
};

/* Ops that are carried out with up to `depth` at a time; all else is 0 at first. */
struct vt_nvme_job {
	struct vt_nvme_op *ops;
	uint64_t count;
	uint32_t depth;
	uint64_t submitted;
	uint64_t completed;
	uint64_t failed; /* of those, by their status */
};

/* Check and reset a queue that the controller does not have yet; -EINVAL. */
int vt_nvme_queue_init(struct vt_nvme_queue *queue);

/*
 * Describe `size` bytes from an iova on by PRP entries (section 4.1.1), the list of which may have
 * `max` entries. -EINVAL: there is nothing, the iova is odd, or the list is too short.
 */
int vt_nvme_prps(uint64_t iova, uint64_t size, uint32_t page_size, uint64_t *list, uint64_t list_iova,
		 uint32_t max, uint64_t prps[2]);

/* Give each lba an op; the data is in `places` pieces of memory from an iova on, used in turn. */
void vt_nvme_fill_ops(struct vt_nvme_op *ops, const uint64_t *lbas, uint64_t count, uint16_t opcode,
		      uint32_t blocks, uint64_t iova, uint64_t step, uint64_t places);

/* Submit a command of 64 bytes under an identifier of its own, which is returned; -ENOSPC: no room. */
int vt_nvme_submit(struct vt_nvme_queue *queue, const void *command);

/* Submit ops by one doorbell, as many as there is room for: returns how many. -EINVAL: one is malformed. */
int vt_nvme_submit_ops(struct vt_nvme_queue *queue, const struct vt_nvme_op *ops, uint32_t count,
		       uint16_t *cids);

/* Take up to `max` completions; 0 where there is none by the deadline. */
int vt_nvme_poll(struct vt_nvme_queue *queue, struct vt_nvme_completion *done, uint32_t max,
		 int64_t deadline_ns);

/* How many commands the controller has not completed. Nothing is taken, and nothing told. */
uint32_t vt_nvme_unanswered(const struct vt_nvme_queue *queue);

/*
 * Carry out a job; each op has its status then. -ETIMEDOUT: not all of it by the deadline; called again
 * it goes on. -EBUSY: the queue has commands that are not this job's. -EINVAL: an op is malformed, and
 * none was submitted.
 */
int vt_nvme_run(struct vt_nvme_queue *queue, struct vt_nvme_job *job, int64_t deadline_ns);

/* end of declarations */

#endif
