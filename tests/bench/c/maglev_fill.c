// SPDX-License-Identifier: Apache-2.0
/*
 * The floor of a Maglev table: the paper's loop over offsets and skips that are given, no hashing.
 * Arguments: slots, backends, rounds. Prints the best round in nanoseconds.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

int main(int argc, char **argv)
{
	uint32_t size = atoi(argv[1]), n = atoi(argv[2]), rounds = atoi(argv[3]);
	uint32_t *offset = malloc(n * 4), *skip = malloc(n * 4), *next = malloc(n * 4);
	int32_t *slots = malloc(size * 4);
	uint64_t best = UINT64_MAX, sum = 0;

	if (argc != 4 || !offset || !skip || !next || !slots)
		return 1;
	srandom(1);
	for (uint32_t i = 0; i < n; i++) {
		offset[i] = random() % size;
		skip[i] = random() % (size - 1) + 1;
	}
	while (rounds--) {
		uint64_t start = now();
		uint32_t taken = 0;

		for (uint32_t i = 0; i < size; i++)
			slots[i] = -1;
		for (uint32_t i = 0; i < n; i++)
			next[i] = offset[i];
		for (;;) {
			for (uint32_t i = 0; i < n; i++) {
				uint32_t slot = next[i];

				while (slots[slot] >= 0) {
					slot += skip[i];
					if (slot >= size)
						slot -= size;
				}
				slots[slot] = i;
				next[i] = slot + skip[i];
				if (next[i] >= size)
					next[i] -= size;
				if (++taken == size)
					goto full;
			}
		}
full:
		start = now() - start;
		best = start < best ? start : best;
		sum += slots[size / 2];
	}
	printf("%llu\n", (unsigned long long)best);
	return sum == 0;
}
