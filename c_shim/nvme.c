/* SPDX-License-Identifier: Apache-2.0 */
#define _DEFAULT_SOURCE
#include "nvme.h"

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "mmio.h"

enum {
	OP_WRITE = 1,
	OP_READ = 2,
	MAX_BLOCKS = 1 << 16,
	LOOKS = 32, /* between two looks at the clock, which is slow */
	TURNS = 1024, /* the same, while there is something to do */
	SPIN_NS = 200 * 1000,
};

struct sqe {
	uint8_t opcode;
	uint8_t flags;
	uint16_t cid;
	uint32_t nsid;
	uint64_t reserved;
	uint64_t metadata;
	uint64_t prps[2];
	uint64_t lba;
	uint32_t blocks; /* less one, and flags */
	uint32_t cdw13[3];
};

struct cqe {
	uint32_t result;
	uint32_t reserved;
	uint16_t sq_head;
	uint16_t sq_id;
	uint16_t cid;
	uint16_t status; /* its lowest bit is the phase */
};

_Static_assert(sizeof(struct sqe) == 64, "section 3.3.3.1");
_Static_assert(sizeof(struct cqe) == 16, "section 3.3.3.2");

/* How a wait is getting on. */
struct wait {
	int64_t deadline_ns;
	int64_t since_ns; /* when there came to be nothing; 0: it is not known yet */
	uint32_t looks; /* in vain */
	uint32_t turns; /* not in vain */
};

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

int vt_nvme_queue_init(struct vt_nvme_queue *queue)
{
	uint32_t page = queue->page_size;

	if (queue->entries < 2 || queue->entries > VT_NVME_MAX_ENTRIES || queue->block_shift > 31 ||
	    page < 4096 || page & (page - 1))
		return -EINVAL;
	for (uint32_t cid = 0; cid < queue->entries - 1; cid++)
		queue->slots[cid] = (struct vt_nvme_slot){ .next_free = cid + 1 };
	queue->closed = queue->in_flight = queue->sq_tail = queue->cq_head = queue->untold = 0;
	queue->next_free = 0;
	queue->phase = 1;
	return 0;
}

int vt_nvme_prps(uint64_t iova, uint64_t size, uint32_t page_size, uint64_t *list, uint64_t list_iova,
		 uint32_t max, uint64_t prps[2])
{
	uint64_t page = iova & ~(uint64_t)(page_size - 1);
	uint64_t entries;

	if (!size || iova & 3 || iova + size - 1 < iova)
		return -EINVAL;
	entries = (iova + size - 1 - page) / page_size; /* pages after the first */
	prps[0] = htole64(iova);
	prps[1] = entries == 1 ? htole64(page + page_size) : 0;
	if (entries < 2)
		return 0;
	if (entries > max)
		return -EINVAL;
	for (uint64_t at = 0; at < entries; at++)
		list[at] = htole64(page + (at + 1) * page_size);
	prps[1] = htole64(list_iova);
	return 0;
}

void vt_nvme_fill_ops(struct vt_nvme_op *ops, const uint64_t *lbas, uint64_t count, uint16_t opcode,
		      uint32_t blocks, uint64_t iova, uint64_t step, uint64_t places)
{
	for (uint64_t at = 0; at < count; at++)
		ops[at] = (struct vt_nvme_op){
			.lba = lbas[at],
			.iova = iova + at % places * step,
			.blocks = blocks,
			.status = VT_NVME_NOT_DONE,
			.opcode = opcode,
		};
}

static bool is_closed(const struct vt_nvme_queue *queue)
{
	return __atomic_load_n(&queue->closed, __ATOMIC_RELAXED);
}

/* Tell the controller how far its completions were taken, so that it may write over them. */
static int tell(struct vt_nvme_queue *queue)
{
	queue->untold = 0;
	return vt_write32(queue->registers, queue->cq_doorbell, queue->cq_head);
}

static int ring(const struct vt_nvme_queue *queue)
{
	return vt_write32(queue->registers, queue->sq_doorbell, queue->sq_tail);
}

/*
 * Have room for one more command: an entry to submit it by, and one for its completion, whatever the
 * controller completes before it is told of any. To tell it late saves register writes.
 */
static int make_room(struct vt_nvme_queue *queue)
{
	if (queue->in_flight == queue->entries - 1)
		return -ENOSPC;
	return queue->in_flight + queue->untold == queue->entries - 1 ? tell(queue) : 0;
}

/* Put a command into the ring, for which there is room; the controller sees it when it is rung. */
static void push(struct vt_nvme_queue *queue, struct sqe *command, uint64_t op)
{
	uint32_t cid = queue->next_free;

	command->cid = htole16(cid);
	memcpy((struct sqe *)(uintptr_t)queue->sq + queue->sq_tail, command, sizeof(*command));
	queue->next_free = queue->slots[cid].next_free;
	queue->slots[cid].in_use = 1;
	queue->slots[cid].op = op;
	queue->in_flight++;
	if (++queue->sq_tail == queue->entries)
		queue->sq_tail = 0;
}

static int describe(const struct vt_nvme_queue *queue, const struct vt_nvme_op *op, uint64_t prps[2])
{
	uint64_t at = (uint64_t)queue->next_free * queue->list_entries * sizeof(uint64_t);

	return vt_nvme_prps(op->iova, (uint64_t)op->blocks << queue->block_shift, queue->page_size,
			    (uint64_t *)(uintptr_t)(queue->lists + at), queue->lists_iova + at,
			    queue->list_entries, prps);
}

static int push_op(struct vt_nvme_queue *queue, const struct vt_nvme_op *op, uint64_t index)
{
	struct sqe command = {
		.opcode = op->opcode,
		.nsid = htole32(queue->nsid),
		.lba = htole64(op->lba),
		.blocks = htole32(op->blocks - 1),
	};
	int result = make_room(queue);

	if (result == 0)
		result = describe(queue, op, command.prps);
	if (result == 0)
		push(queue, &command, index);
	return result;
}

static bool is_sound(const struct vt_nvme_queue *queue, const struct vt_nvme_op *op)
{
	uint64_t size = (uint64_t)op->blocks << queue->block_shift;
	uint64_t pages = (size + (op->iova & (queue->page_size - 1)) - 1) / queue->page_size;

	return (op->opcode == OP_READ || op->opcode == OP_WRITE) && op->blocks &&
	       op->blocks <= MAX_BLOCKS && !(op->iova & 3) && op->iova + size - 1 >= op->iova &&
	       (pages < 2 || pages <= queue->list_entries);
}

static bool are_sound(const struct vt_nvme_queue *queue, const struct vt_nvme_op *ops, uint64_t count)
{
	for (uint64_t at = 0; at < count; at++)
		if (!is_sound(queue, &ops[at]))
			return false;
	return true;
}

int vt_nvme_submit(struct vt_nvme_queue *queue, const void *command)
{
	uint32_t cid = queue->next_free;
	struct sqe copy;
	int result = is_closed(queue) ? -ECANCELED : make_room(queue);

	if (result < 0)
		return result;
	memcpy(&copy, command, sizeof(copy));
	push(queue, &copy, 0);
	result = ring(queue);
	return result < 0 ? result : (int)cid;
}

int vt_nvme_submit_ops(struct vt_nvme_queue *queue, const struct vt_nvme_op *ops, uint32_t count,
		       uint16_t *cids)
{
	uint32_t done = 0;
	int result = 0;

	if (is_closed(queue))
		return -ECANCELED;
	if (!are_sound(queue, ops, count))
		return -EINVAL;
	for (; done < count; done++) {
		cids[done] = queue->next_free;
		result = push_op(queue, &ops[done], done);
		if (result < 0)
			break;
	}
	if (result < 0 && result != -ENOSPC)
		return result;
	result = done ? ring(queue) : 0;
	return result < 0 ? result : (int)done;
}

/* Go to the next completion; those of each round have the other phase. */
static void step(const struct vt_nvme_queue *queue, uint32_t *head, uint32_t *phase)
{
	if (++*head == queue->entries) {
		*head = 0;
		*phase ^= 1;
	}
}

uint32_t vt_nvme_unanswered(const struct vt_nvme_queue *queue)
{
	const volatile struct cqe *entries = (struct cqe *)(uintptr_t)queue->cq;
	uint32_t head = queue->cq_head, phase = queue->phase, left = queue->in_flight;

	while (left && (le16toh(entries[head].status) & 1) == phase) {
		left--;
		step(queue, &head, &phase);
	}
	return left;
}

/* Take the next completion: 1, or 0 where there is none yet. What the controller wrote is read once. */
static int take(struct vt_nvme_queue *queue, struct vt_nvme_completion *done)
{
	const volatile struct cqe *entry = (struct cqe *)(uintptr_t)queue->cq + queue->cq_head;
	uint16_t status = le16toh(__atomic_load_n(&entry->status, __ATOMIC_ACQUIRE));
	struct vt_nvme_slot *slot;

	if ((status & 1) != queue->phase)
		return 0;
	done->cid = le16toh(entry->cid);
	done->result = le32toh(entry->result);
	done->status = status >> 1;
	if (done->cid >= queue->entries - 1 || !queue->slots[done->cid].in_use)
		return -EBADMSG;
	slot = &queue->slots[done->cid];
	slot->in_use = 0;
	slot->next_free = queue->next_free;
	queue->next_free = done->cid;
	queue->in_flight--;
	queue->untold++;
	step(queue, &queue->cq_head, &queue->phase);
	return 1;
}

/* As short as the kernel makes it, which is some 50 us. */
static void nap(void)
{
	struct timespec time = { .tv_nsec = 1 };

	nanosleep(&time, NULL);
}

/*
 * After a look in vain: -ETIMEDOUT when the time is over. The more commands there are, the sooner it sleeps:
 * several of them are complete after that, and their successors take one doorbell. Meanwhile the
 * processor is others': those who emulate the controller need it. (There is no `pause` in the loop, as
 * emulators leave the emulated processor for each.)
 */
static int await(const struct vt_nvme_queue *queue, struct wait *wait)
{
	int64_t now;

	if (is_closed(queue))
		return -ECANCELED;
	if (queue->interrupts || !wait->deadline_ns)
		return -ETIMEDOUT;
	if (++wait->looks % LOOKS)
		return 0;
	now = now_ns();
	if (now >= wait->deadline_ns)
		return -ETIMEDOUT;
	if (!wait->since_ns)
		wait->since_ns = now;
	if ((now - wait->since_ns) * (queue->in_flight + 1) >= SPIN_NS) {
		nap();
		wait->looks = LOOKS - 1;
	}
	return 0;
}

/* After a look that was not in vain. */
static int go_on(struct wait *wait)
{
	wait->since_ns = wait->looks = 0;
	return ++wait->turns % TURNS || now_ns() < wait->deadline_ns ? 0 : -ETIMEDOUT;
}

/* The controller may send its next interrupt only when it is told of what was taken. */
static int settle(struct vt_nvme_queue *queue)
{
	return queue->untold && queue->interrupts ? tell(queue) : 0;
}

int vt_nvme_poll(struct vt_nvme_queue *queue, struct vt_nvme_completion *done, uint32_t max,
		 int64_t deadline_ns)
{
	struct wait wait = { .deadline_ns = deadline_ns };
	uint32_t taken = 0;
	int result;

	if (is_closed(queue))
		return -ECANCELED;
	while (true) {
		while (taken < max && (result = take(queue, &done[taken])) > 0)
			taken++;
		if (taken || !max)
			break;
		if (result == 0)
			result = await(queue, &wait);
		if (result < 0)
			return result == -ETIMEDOUT ? 0 : result;
	}
	result = settle(queue);
	return result < 0 ? result : (int)taken;
}

/* Submit what there is room for, by one doorbell. */
static int feed(struct vt_nvme_queue *queue, struct vt_nvme_job *job)
{
	uint64_t before = job->submitted;
	int result = 0;

	while (job->submitted < job->count && queue->in_flight < job->depth) {
		result = push_op(queue, &job->ops[job->submitted], job->submitted);
		if (result < 0)
			break;
		job->submitted++;
	}
	if (result < 0 && result != -ENOSPC)
		return result;
	return job->submitted > before ? ring(queue) : 0;
}

/* Take all completions that are there; returns how many. */
static int reap(struct vt_nvme_queue *queue, struct vt_nvme_job *job)
{
	struct vt_nvme_completion done;
	int taken = 0, result;

	while ((result = take(queue, &done)) > 0) {
		job->ops[queue->slots[done.cid].op].status = done.status;
		job->failed += done.status != 0;
		job->completed++;
		taken++;
	}
	if (result == 0)
		result = settle(queue);
	return result < 0 ? result : taken;
}

int vt_nvme_run(struct vt_nvme_queue *queue, struct vt_nvme_job *job, int64_t deadline_ns)
{
	struct wait wait = { .deadline_ns = deadline_ns };
	int result;

	if (queue->in_flight != job->submitted - job->completed)
		return -EBUSY;
	if (!job->depth || (!job->submitted && !are_sound(queue, job->ops, job->count)))
		return -EINVAL;
	while (job->completed < job->count) {
		result = is_closed(queue) ? -ECANCELED : feed(queue, job);
		if (result == 0)
			result = reap(queue, job);
		if (result == 0)
			result = await(queue, &wait);
		else if (result > 0)
			result = go_on(&wait);
		if (result < 0)
			return result;
	}
	return 0;
}
