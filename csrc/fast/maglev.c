// SPDX-License-Identifier: Apache-2.0
/*
 * The lookup table of Maglev (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
 * Balancer", NSDI 2016, section 3.4), with turns by weight as Cilium has them.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cdef.h"

#define FREE UINT32_MAX

/* The place of one backend in its own permutation of the slots. */
struct walk {
	uint32_t next;
	uint32_t skip;
};

static uint32_t take_slot(uint32_t *table, uint32_t size, struct walk *walk, uint32_t backend)
{
	uint32_t slot = walk->next;

	/* size is a prime, so the walk meets every slot, and a free one while there is one */
	while (table[slot] != FREE) {
		slot += walk->skip;
		if (slot >= size)
			slot -= size;
	}
	table[slot] = backend;
	walk->next = slot + walk->skip;
	if (walk->next >= size)
		walk->next -= size;
	return slot;
}

static void fill_evenly(uint32_t *table, uint32_t size, struct walk *walks, uint32_t n)
{
	for (uint32_t taken = 0, backend = 0; taken < size; taken++) {
		take_slot(table, size, &walks[backend], backend);
		if (++backend == n)
			backend = 0;
	}
}

/* A backend sits a turn out while what it has taken is ahead of its weight. */
static void fill_by_weight(uint32_t *table, uint32_t size, struct walk *walks, double *taken,
			   const uint16_t *weights, uint32_t n)
{
	double sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += weights[i];
	for (uint32_t i = 0; i < n; i++)
		taken[i] = (double)weights[i] / n;
	for (uint64_t turn = 0; turn < size; turn++) {
		uint32_t backend = turn % n;

		while ((turn + 1) * weights[backend] < (uint64_t)taken[backend])
			if (++backend == n)
				backend = 0;
		taken[backend] += sum;
		take_slot(table, size, &walks[backend], backend);
	}
}

/* Zeros after the text, so that memcmp() orders texts of any length. */
struct name {
	char text[80];
	uint32_t size;
	uint32_t backend;
};

static int compare_names(const void *left, const void *right)
{
	const struct name *const *a = left, *const *b = right;

	return memcmp((*a)->text, (*b)->text, sizeof((*a)->text));
}

int pcl_maglev_place(const struct pcl_backend *backends, uint32_t n, uint32_t seed, uint32_t size,
		     uint32_t *order, uint32_t *offsets, uint32_t *skips)
{
	struct name *names = calloc(n, sizeof(*names));
	struct name **sorted = calloc(n, sizeof(*sorted));
	int failed = !names || !sorted;

	if (!failed) {
		for (uint32_t i = 0; i < n; i++) {
			names[i].size = pcl_backend_text(&backends[i], names[i].text);
			names[i].backend = i;
			sorted[i] = &names[i];
		}
		qsort(sorted, n, sizeof(*sorted), compare_names);
		for (uint32_t i = 0; i < n; i++) {
			const struct name *name = sorted[i];
			uint64_t hash[2];

			pcl_murmur3_128((const uint8_t *)name->text, name->size, seed, hash);
			order[i] = name->backend;
			offsets[i] = hash[0] % size;
			skips[i] = hash[1] % (size - 1) + 1;
		}
	}
	free(names);
	free(sorted);
	return failed ? -1 : 0;
}

int pcl_maglev_fill(uint32_t *table, uint32_t size, const uint32_t *offsets, const uint32_t *skips,
		    const uint16_t *weights, uint32_t n)
{
	struct walk *walks = calloc(n, sizeof(*walks));
	double *taken = weights ? calloc(n, sizeof(*taken)) : NULL;
	int failed = !walks || (weights && !taken);

	if (!failed) {
		for (uint32_t i = 0; i < n; i++)
			walks[i] = (struct walk){ offsets[i], skips[i] };
		memset(table, 0xff, (size_t)size * sizeof(*table));
		if (weights)
			fill_by_weight(table, size, walks, taken, weights, n);
		else
			fill_evenly(table, size, walks, n);
	}
	free(walks);
	free(taken);
	return failed ? -1 : 0;
}
