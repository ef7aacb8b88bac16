// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>

#include "entries.h"

void pcl_column_free(char *column)
{
	free(column);
}

void entries_init(struct pcl_entries *entries, uint32_t key_size, uint32_t value_size)
{
	free(entries->keys);
	free(entries->values);
	*entries = (struct pcl_entries){ .key_size = key_size, .value_size = value_size };
}

static int resize(struct pcl_entries *entries, uint32_t capacity)
{
	char *keys = realloc(entries->keys, (size_t)capacity * entries->key_size);
	char *values;

	if (keys)
		entries->keys = keys;
	values = realloc(entries->values, (size_t)capacity * entries->value_size);
	if (values)
		entries->values = values;
	if (!keys || !values)
		return -ENOMEM;
	entries->capacity = capacity;
	return 0;
}

int entries_reserve(struct pcl_entries *entries, uint32_t more)
{
	uint64_t needed = (uint64_t)entries->count + more;
	uint64_t capacity = entries->capacity;

	if (needed <= capacity)
		return 0;
	capacity = needed > capacity * 2 ? needed : capacity * 2;
	if (capacity > UINT32_MAX)
		return -ENOMEM;
	return resize(entries, (uint32_t)capacity);
}

void entries_trim(struct pcl_entries *entries)
{
	if (entries->count && entries->count < entries->capacity)
		resize(entries, entries->count); /* a failure leaves them as large as they are */
}
