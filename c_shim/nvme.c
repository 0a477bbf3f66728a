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
	POLLS_PER_CLOCK_READ = 32, /* to read the clock is slow */
	ROUNDS_PER_CLOCK_READ = 1024, /* the same, while completions arrive */
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
	uint32_t blocks; /* minus one, and flags */
	uint32_t cdw13[3];
};

struct cqe {
	uint32_t result;
	uint32_t reserved;
	uint16_t sq_head;
	uint16_t sq_id;
	uint16_t cid;
	uint16_t status; /* bit 0 is the phase */
};

_Static_assert(sizeof(struct sqe) == 64, "section 3.3.3.1");
_Static_assert(sizeof(struct cqe) == 16, "section 3.3.3.2");

/* The progress of a wait. */
struct wait {
	int64_t deadline_ns;
	int64_t idle_since_ns; /* 0: not known yet */
	uint32_t polls; /* without a completion */
	uint32_t rounds; /* with completions */
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
	queue->closed = queue->in_flight = queue->sq_tail = queue->cq_head = queue->unacknowledged = 0;
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

/* Write the completion doorbell: the controller may then reuse the entries that were taken. */
static int acknowledge(struct vt_nvme_queue *queue)
{
	queue->unacknowledged = 0;
	return vt_write32(queue->registers, queue->cq_doorbell, queue->cq_head);
}

static int ring_doorbell(const struct vt_nvme_queue *queue)
{
	return vt_write32(queue->registers, queue->sq_doorbell, queue->sq_tail);
}

/*
 * Make sure that one more command has an entry in the submission queue, and an entry for its completion,
 * whatever the controller completes before the next doorbell write. Late writes save register accesses.
 */
static int make_room(struct vt_nvme_queue *queue)
{
	if (queue->in_flight == queue->entries - 1)
		return -ENOSPC;
	return queue->in_flight + queue->unacknowledged == queue->entries - 1 ? acknowledge(queue) : 0;
}

/* Put a command into a submission queue with room; the doorbell shows it to the controller. */
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

static int make_prps(const struct vt_nvme_queue *queue, const struct vt_nvme_op *op, uint64_t prps[2])
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
		result = make_prps(queue, op, command.prps);
	if (result == 0)
		push(queue, &command, index);
	return result;
}

static bool is_valid(const struct vt_nvme_queue *queue, const struct vt_nvme_op *op)
{
	uint64_t size = (uint64_t)op->blocks << queue->block_shift;
	uint64_t pages = (size + (op->iova & (queue->page_size - 1)) - 1) / queue->page_size;

	return (op->opcode == OP_READ || op->opcode == OP_WRITE) && op->blocks &&
	       op->blocks <= MAX_BLOCKS && !(op->iova & 3) && op->iova + size - 1 >= op->iova &&
	       (pages < 2 || pages <= queue->list_entries);
}

static bool are_valid(const struct vt_nvme_queue *queue, const struct vt_nvme_op *ops, uint64_t count)
{
	for (uint64_t at = 0; at < count; at++)
		if (!is_valid(queue, &ops[at]))
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
	result = ring_doorbell(queue);
	return result < 0 ? result : (int)cid;
}

int vt_nvme_submit_ops(struct vt_nvme_queue *queue, const struct vt_nvme_op *ops, uint32_t count,
		       uint16_t *cids)
{
	uint32_t done = 0;
	int result = 0;

	if (is_closed(queue))
		return -ECANCELED;
	if (!are_valid(queue, ops, count))
		return -EINVAL;
	for (; done < count; done++) {
		cids[done] = queue->next_free;
		result = push_op(queue, &ops[done], done);
		if (result < 0)
			break;
	}
	if (result < 0 && result != -ENOSPC)
		return result;
	result = done ? ring_doorbell(queue) : 0;
	return result < 0 ? result : (int)done;
}

/* Advance to the next completion entry; the phase changes with each pass. */
static void advance(const struct vt_nvme_queue *queue, uint32_t *head, uint32_t *phase)
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
		advance(queue, &head, &phase);
	}
	return left;
}

/* Take the next completion: returns 1, or 0 if there is none. Each field of the entry is read once. */
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
	queue->unacknowledged++;
	advance(queue, &queue->cq_head, &queue->phase);
	return 1;
}

/* The kernel makes this sleep about 50 us long. */
static void sleep_briefly(void)
{
	struct timespec time = { .tv_nsec = 1 };

	nanosleep(&time, NULL);
}

/*
 * Called after a poll without a completion; returns -ETIMEDOUT at the deadline. With more commands in flight
 * it sleeps sooner: several commands are complete afterwards, and their successors take one doorbell write.
 * Meanwhile other threads can run, for example an emulator of the controller. (The loop has no `pause`
 * instruction, since emulators leave the emulated processor at each.)
 */
static int after_empty_poll(const struct vt_nvme_queue *queue, struct wait *wait)
{
	int64_t now;

	if (is_closed(queue))
		return -ECANCELED;
	if (queue->interrupts || !wait->deadline_ns)
		return -ETIMEDOUT;
	if (++wait->polls % POLLS_PER_CLOCK_READ)
		return 0;
	now = now_ns();
	if (now >= wait->deadline_ns)
		return -ETIMEDOUT;
	if (!wait->idle_since_ns)
		wait->idle_since_ns = now;
	if ((now - wait->idle_since_ns) * (queue->in_flight + 1) >= SPIN_NS) {
		sleep_briefly();
		wait->polls = POLLS_PER_CLOCK_READ - 1;
	}
	return 0;
}

/* Called after a poll with completions; returns -ETIMEDOUT at the deadline. */
static int after_completions(struct wait *wait)
{
	wait->idle_since_ns = wait->polls = 0;
	return ++wait->rounds % ROUNDS_PER_CLOCK_READ || now_ns() < wait->deadline_ns ? 0 : -ETIMEDOUT;
}

/* With interrupts, the next interrupt may need a doorbell write for the completions that were taken. */
static int acknowledge_for_interrupt(struct vt_nvme_queue *queue)
{
	return queue->unacknowledged && queue->interrupts ? acknowledge(queue) : 0;
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
			result = after_empty_poll(queue, &wait);
		if (result < 0)
			return result == -ETIMEDOUT ? 0 : result;
	}
	result = acknowledge_for_interrupt(queue);
	return result < 0 ? result : (int)taken;
}

/* Submit as many ops as fit by one doorbell write. */
static int submit_more(struct vt_nvme_queue *queue, struct vt_nvme_job *job)
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
	return job->submitted > before ? ring_doorbell(queue) : 0;
}

/* Take all completions that have arrived; returns how many. */
static int take_all(struct vt_nvme_queue *queue, struct vt_nvme_job *job)
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
		result = acknowledge_for_interrupt(queue);
	return result < 0 ? result : taken;
}

int vt_nvme_run(struct vt_nvme_queue *queue, struct vt_nvme_job *job, int64_t deadline_ns)
{
	struct wait wait = { .deadline_ns = deadline_ns };
	int result;

	if (queue->in_flight != job->submitted - job->completed)
		return -EBUSY;
	if (!job->depth || (!job->submitted && !are_valid(queue, job->ops, job->count)))
		return -EINVAL;
	while (job->completed < job->count) {
		result = is_closed(queue) ? -ECANCELED : submit_more(queue, job);
		if (result == 0)
			result = take_all(queue, job);
		if (result == 0)
			result = after_empty_poll(queue, &wait);
		else if (result > 0)
			result = after_completions(&wait);
		if (result < 0)
			return result;
	}
	return 0;
}
