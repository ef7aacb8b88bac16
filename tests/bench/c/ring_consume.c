// SPDX-License-Identifier: Apache-2.0
/* What libbpf's consumer takes to copy events out of a ring: the peer of tests/bench/ring.py.
 *
 *	ring_consume MAP_FD EVENT_SIZE ROOM
 *
 * Ends when none came for QUIET_MS. Prints the number of events and the nanoseconds of CPU.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <bpf/libbpf.h>

#define QUIET_MS 150

struct events {
	char *data;
	size_t size, count, room;
};

static long long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static int take(void *context, void *data, size_t size)
{
	struct events *events = context;

	if (size != events->size || events->count == events->room)
		return -1;
	memcpy(events->data + events->count++ * size, data, size);
	return 0;
}

int main(int argc, char **argv)
{
	struct events events = {0};
	struct ring_buffer *ring;
	long long started;
	int taken;

	if (argc != 4)
		return 2;
	events.size = strtoul(argv[2], NULL, 10);
	events.room = strtoul(argv[3], NULL, 10);
	events.data = malloc(events.size * events.room);
	ring = ring_buffer__new(atoi(argv[1]), take, &events, NULL);
	if (!events.data || !ring)
		return 1;
	puts("ready");
	fflush(stdout);
	started = now();
	do
		taken = ring_buffer__poll(ring, QUIET_MS);
	while (taken > 0);
	printf("%zu %lld\n", events.count, now() - started);
	ring_buffer__free(ring);
	free(events.data);
	return taken < 0;
}
