// SPDX-License-Identifier: Apache-2.0
/* The consumer of BPF_MAP_TYPE_RINGBUF.
 *
 * The protocol is the kernel's (Documentation/bpf/ringbuf.rst, kernel/bpf/ringbuf.c). The map
 * offers a page with the consumer's position, a page with the producer's, and the data, mapped
 * twice in a row so that a record that wraps around is contiguous all the same. A record is an
 * 8-byte header (length and two flags, then the kernel's own page offset) and its data, rounded
 * up to 8. Positions only grow; `position & (size - 1)` is the offset.
 *
 * Order of memory: a producer fills a record before it clears BUSY with a full barrier, hence the
 * acquire of the header here; a record is copied before its space is handed back, hence the
 * release of the consumer's position.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "60_ring.h"

struct pcl_ring {
	unsigned long *consumer;
	const unsigned long *producer;
	const uint8_t *data;
	size_t size;
	size_t page;
};

struct cursor {
	struct pcl_ring *ring;
	unsigned long position; /* up to here the records are consumed */
	unsigned long released; /* up to here the kernel knows it */
	/* Up to here producers had reserved at the start of the call: read once, so that a call
	 * ends however fast they are. What comes later makes the next poll() return at once. */
	unsigned long limit;
};

struct record {
	const uint8_t *data;
	size_t size;
	bool discarded;
};

static size_t record_room(size_t size)
{
	return (size + BPF_RINGBUF_HDR_SZ + 7) & ~(size_t)7;
}

int pcl_ring_open(int map_fd, struct pcl_ring **ret)
{
	struct bpf_map_info info = {0};
	uint32_t info_size = sizeof(info);
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct pcl_ring *ring;
	void *consumer, *producer;
	int err = bpf_obj_get_info_by_fd(map_fd, &info, &info_size);

	if (err)
		return err;
	if (info.type != BPF_MAP_TYPE_RINGBUF)
		return -EINVAL;
	consumer = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);
	if (consumer == MAP_FAILED)
		return -errno;
	producer = mmap(NULL, page + 2 * (size_t)info.max_entries, PROT_READ, MAP_SHARED, map_fd,
			(off_t)page);
	if (producer == MAP_FAILED) {
		err = -errno;
		munmap(consumer, page);
		return err;
	}
	ring = malloc(sizeof(*ring));
	if (!ring) {
		munmap(producer, page + 2 * (size_t)info.max_entries);
		munmap(consumer, page);
		return -ENOMEM;
	}
	*ring = (struct pcl_ring){
		.consumer = consumer,
		.producer = producer,
		.data = (const uint8_t *)producer + page,
		.size = info.max_entries,
		.page = page,
	};
	*ret = ring;
	return 0;
}

void pcl_ring_close(struct pcl_ring *ring)
{
	munmap((void *)ring->producer, ring->page + 2 * ring->size);
	munmap(ring->consumer, ring->page);
	free(ring);
}

size_t pcl_ring_size(const struct pcl_ring *ring)
{
	return ring->size;
}

size_t pcl_ring_pending(const struct pcl_ring *ring)
{
	unsigned long consumer = __atomic_load_n(ring->consumer, __ATOMIC_RELAXED);

	return __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE) - consumer;
}

static struct cursor cursor_begin(struct pcl_ring *ring)
{
	unsigned long consumer = __atomic_load_n(ring->consumer, __ATOMIC_RELAXED);

	return (struct cursor){
		.ring = ring,
		.position = consumer,
		.released = consumer,
		.limit = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE),
	};
}

static void cursor_release(struct cursor *at)
{
	__atomic_store_n(at->ring->consumer, at->position, __ATOMIC_RELEASE);
	at->released = at->position;
}

/* The record at the cursor, or false: none yet, or its producer is still writing it. */
static bool cursor_peek(struct cursor *at, struct record *ret)
{
	const struct pcl_ring *ring = at->ring;
	const uint8_t *header;
	uint32_t length;

	if (at->position == at->limit)
		return false;
	header = ring->data + (at->position & (ring->size - 1));
	length = __atomic_load_n((const uint32_t *)header, __ATOMIC_ACQUIRE);
	if (length & BPF_RINGBUF_BUSY_BIT)
		return false;
	ret->data = header + BPF_RINGBUF_HDR_SZ;
	ret->size = length & ~BPF_RINGBUF_DISCARD_BIT;
	ret->discarded = length & BPF_RINGBUF_DISCARD_BIT;
	return true;
}

static void cursor_advance(struct cursor *at, const struct record *record)
{
	at->position += record_room(record->size);
	/* One release a batch is enough for the consumer, but a producer would meet a full ring
	 * all through a long batch: hand space back every eighth of the ring. */
	if (at->position - at->released >= at->ring->size / 8)
		cursor_release(at);
}

size_t pcl_ring_take(struct pcl_ring *ring, void *out, size_t record_size, size_t max,
		     size_t *odd_size)
{
	struct cursor at = cursor_begin(ring);
	uint8_t *next = out;
	struct record record;
	size_t taken = 0;

	*odd_size = 0;
	while (taken < max && cursor_peek(&at, &record)) {
		if (!record.discarded) {
			if (record.size != record_size) {
				*odd_size = record.size;
				break;
			}
			memcpy(next, record.data, record_size);
			next += record_size;
			taken++;
		}
		cursor_advance(&at, &record);
	}
	cursor_release(&at);
	return taken;
}

size_t pcl_ring_take_any(struct pcl_ring *ring, void *out, size_t out_size, uint32_t *sizes,
			 size_t max, size_t *odd_size)
{
	struct cursor at = cursor_begin(ring);
	uint8_t *next = out;
	struct record record;
	size_t taken = 0;

	*odd_size = 0;
	while (taken < max && cursor_peek(&at, &record)) {
		if (!record.discarded) {
			if (record.size > out_size) {
				*odd_size = record.size;
				break;
			}
			memcpy(next, record.data, record.size);
			next += record.size;
			out_size -= record.size;
			sizes[taken++] = (uint32_t)record.size;
		}
		cursor_advance(&at, &record);
	}
	cursor_release(&at);
	return taken;
}
