// SPDX-License-Identifier: Apache-2.0
/* The growing pair of arrays that a whole map is read into. */
#ifndef PCL_ENTRIES_H
#define PCL_ENTRIES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "31_batch.h"

void entries_init(struct pcl_entries *entries, const struct pcl_layout *map);

/* Make room for `more` entries after the last. */
int entries_reserve(struct pcl_entries *entries, uint32_t more);

static inline char *entries_key(const struct pcl_entries *entries, uint32_t index)
{
	return entries->keys + (size_t)index * entries->key_size;
}

static inline char *entries_value(const struct pcl_entries *entries, uint32_t index)
{
	return entries->values + (size_t)index * entries->value_size;
}

#endif
