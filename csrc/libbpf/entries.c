// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "entries.h"

#define HUGE_PAGE (2UL << 20)
#define SMALL 32768 /* entries: up to here by doubling, then at once for the whole map */
#define MOST_AT_ONCE (256UL << 20)

void pcl_column_free(char *column)
{
	free(column);
}

void entries_init(struct pcl_entries *entries, const struct pcl_layout *map)
{
	free(entries->keys);
	free(entries->values);
	*entries = (struct pcl_entries){
		.key_size = map->key_size,
		.value_size = map->value_size,
		.expected = map->max_entries,
	};
}

/* A longer column with the first `used` bytes of the old one. Memory that is never touched costs
 * nothing; touching it costs a fault a page, which huge pages make few. */
static char *lengthen(char *column, size_t used, size_t size)
{
	void *longer;

	if (size < 2 * HUGE_PAGE)
		return realloc(column, size);
	if (posix_memalign(&longer, HUGE_PAGE, size))
		return NULL;
	madvise(longer, size, MADV_HUGEPAGE); /* a hint: without huge pages it is only slower */
	if (used)
		memcpy(longer, column, used);
	free(column);
	return longer;
}

static int resize(struct pcl_entries *entries, uint32_t capacity)
{
	char *keys, *values;

	keys = lengthen(entries->keys, (size_t)entries->count * entries->key_size,
			(size_t)capacity * entries->key_size);
	if (!keys)
		return -ENOMEM;
	entries->keys = keys;
	values = lengthen(entries->values, (size_t)entries->count * entries->value_size,
			  (size_t)capacity * entries->value_size);
	if (!values)
		return -ENOMEM;
	entries->values = values;
	entries->capacity = capacity;
	return 0;
}

int entries_reserve(struct pcl_entries *entries, uint32_t more)
{
	uint64_t needed = (uint64_t)entries->count + more;
	uint64_t all = (uint64_t)entries->expected + more;
	uint64_t capacity = 2ULL * entries->capacity;

	if (needed <= entries->capacity)
		return 0;
	if (capacity < needed)
		capacity = needed;
	if (capacity > SMALL && capacity < all &&
	    all * (entries->key_size + entries->value_size) <= MOST_AT_ONCE)
		capacity = all;
	if (capacity > UINT32_MAX)
		return -ENOMEM;
	return resize(entries, (uint32_t)capacity);
}
