// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "keyset.h"

#define FIRST_SLOTS 1024

int keyset_init(struct keyset *set, uint32_t key_size)
{
	*set = (struct keyset){
		.key_size = key_size,
		.mask = FIRST_SLOTS - 1,
		.slots = calloc(FIRST_SLOTS, sizeof(uint32_t)),
	};
	return set->slots ? 0 : -ENOMEM;
}

void keyset_deinit(struct keyset *set)
{
	free(set->slots);
	set->slots = NULL;
}

/* Eight bytes a step, each folded in by a 64x64 multiply, whose high half mixes best. */
static uint32_t hash_of(const char *key, uint32_t size)
{
	uint64_t hash = size, word;

	for (; size >= sizeof(word); size -= sizeof(word), key += sizeof(word)) {
		memcpy(&word, key, sizeof(word));
		hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
		hash ^= hash >> 32;
	}
	word = 0;
	memcpy(&word, key, size);
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
	return hash >> 32;
}

/* The slot that holds the key, or the free one where it belongs. */
static uint32_t *slot_of(const struct keyset *set, const char *keys, const char *key)
{
	uint32_t at = hash_of(key, set->key_size) & set->mask;

	while (set->slots[at] &&
	       memcmp(keys + (size_t)(set->slots[at] - 1) * set->key_size, key, set->key_size))
		at = (at + 1) & set->mask;
	return &set->slots[at];
}

static int grow(struct keyset *set, const char *keys)
{
	struct keyset bigger = *set;
	uint32_t i;

	bigger.mask = set->mask * 2 + 1;
	bigger.slots = calloc((size_t)bigger.mask + 1, sizeof(uint32_t));
	if (!bigger.slots)
		return -ENOMEM;
	for (i = 0; i <= set->mask; i++)
		if (set->slots[i])
			*slot_of(&bigger, keys,
				 keys + (size_t)(set->slots[i] - 1) * set->key_size) = set->slots[i];
	free(set->slots);
	*set = bigger;
	return 0;
}

int keyset_add(struct keyset *set, const char *keys, uint32_t index)
{
	uint32_t *slot;

	if (set->count > set->mask / 2 && grow(set, keys))
		return -ENOMEM;
	slot = slot_of(set, keys, keys + (size_t)index * set->key_size);
	if (*slot)
		return 0;
	*slot = index + 1;
	set->count++;
	return 1;
}
