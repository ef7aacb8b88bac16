// SPDX-License-Identifier: Apache-2.0
/* What C takes to fill, dump and empty a hash map: the peer of tests/bench/maps.py.
 *
 *	map_batch MAP_FD DATA_FD COUNT BATCH
 *
 * DATA_FD holds COUNT keys and then COUNT values. BATCH 0 means one entry at a time. Prints the
 * nanoseconds of CPU that writing, reading and deleting all entries took.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include <bpf/bpf.h>

#define KEY_SIZE 20
#define VALUE_SIZE 16

struct data {
	int map;
	unsigned int count, batch;
	const char *keys, *values;
};

static long long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static void check(int failed, const char *what)
{
	if (failed) {
		perror(what);
		exit(1);
	}
}

static unsigned int chunk(const struct data *data, unsigned int done)
{
	unsigned int left = data->count - done;

	return left < data->batch ? left : data->batch;
}

static void fill_batch(const struct data *data)
{
	LIBBPF_OPTS(bpf_map_batch_opts, opts);
	unsigned int done, count;

	for (done = 0; done < data->count; done += count) {
		count = chunk(data, done);
		check(bpf_map_update_batch(data->map, data->keys + (size_t)done * KEY_SIZE,
					   data->values + (size_t)done * VALUE_SIZE, &count, &opts),
		      "update_batch");
	}
}

static void dump_batch(const struct data *data)
{
	LIBBPF_OPTS(bpf_map_batch_opts, opts);
	/* A batch that meets a bucket for which there is no room left fails: leave some. */
	size_t room = data->count + data->batch;
	char *keys = malloc(room * KEY_SIZE), *values = malloc(room * VALUE_SIZE);
	unsigned int done = 0, count, position = 0;
	int err;

	do {
		count = data->batch;
		err = bpf_map_lookup_batch(data->map, done ? &position : NULL, &position,
					   keys + (size_t)done * KEY_SIZE,
					   values + (size_t)done * VALUE_SIZE, &count, &opts);
		check(err && err != -ENOENT, "lookup_batch");
		done += count;
	} while (!err);
	check(done != data->count, "entries are missing");
	free(keys);
	free(values);
}

static void empty_batch(const struct data *data)
{
	LIBBPF_OPTS(bpf_map_batch_opts, opts);
	unsigned int done, count;

	for (done = 0; done < data->count; done += count) {
		count = chunk(data, done);
		check(bpf_map_delete_batch(data->map, data->keys + (size_t)done * KEY_SIZE, &count,
					   &opts),
		      "delete_batch");
	}
}

static void fill_each(const struct data *data)
{
	unsigned int i;

	for (i = 0; i < data->count; i++)
		check(bpf_map_update_elem(data->map, data->keys + (size_t)i * KEY_SIZE,
					  data->values + (size_t)i * VALUE_SIZE, BPF_ANY),
		      "update");
}

static void look_up_each(const struct data *data)
{
	char value[VALUE_SIZE];
	unsigned int i;

	for (i = 0; i < data->count; i++)
		check(bpf_map_lookup_elem(data->map, data->keys + (size_t)i * KEY_SIZE, value),
		      "lookup");
}

static void empty_each(const struct data *data)
{
	unsigned int i;

	for (i = 0; i < data->count; i++)
		check(bpf_map_delete_elem(data->map, data->keys + (size_t)i * KEY_SIZE), "delete");
}

int main(int argc, char **argv)
{
	struct data data;
	long long times[4];
	size_t size;
	void *all;

	if (argc != 5)
		return 2;
	data.map = atoi(argv[1]);
	data.count = strtoul(argv[3], NULL, 10);
	data.batch = strtoul(argv[4], NULL, 10);
	size = (size_t)data.count * (KEY_SIZE + VALUE_SIZE);
	all = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE, atoi(argv[2]), 0);
	check(all == MAP_FAILED, "mmap");
	data.keys = all;
	data.values = data.keys + (size_t)data.count * KEY_SIZE;

	times[0] = now();
	(data.batch ? fill_batch : fill_each)(&data);
	times[1] = now();
	(data.batch ? dump_batch : look_up_each)(&data);
	times[2] = now();
	(data.batch ? empty_batch : empty_each)(&data);
	times[3] = now();
	printf("%lld %lld %lld\n", times[1] - times[0], times[2] - times[1], times[3] - times[2]);
	return 0;
}
