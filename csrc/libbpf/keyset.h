// SPDX-License-Identifier: Apache-2.0
/* The set of keys of a growing array: open addressing over the array's indices. */
#ifndef PCL_KEYSET_H
#define PCL_KEYSET_H

#include <stdint.h>

struct keyset {
	uint32_t key_size;
	uint32_t count;
	uint32_t mask;
	uint32_t *slots; /* index + 1; 0 = free */
};

int keyset_init(struct keyset *set, uint32_t key_size);
void keyset_deinit(struct keyset *set);

/* Adds keys[index]; `keys` is the array as it stands (it may have moved since the last call), and
 * all indices that were added are still valid in it. 1 if it is new, 0 if it was there, -ENOMEM. */
int keyset_add(struct keyset *set, const char *keys, uint32_t index);

#endif
