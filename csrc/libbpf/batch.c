// SPDX-License-Identifier: Apache-2.0
/* Writing and deleting many entries.
 *
 * The kernel's batches since 5.6 (commits aa2e93b8e58e, 057996380a42); on a map or a kernel
 * without them, and to find the entry at which a batch failed, one entry at a time.
 */
#include <errno.h>

#include <bpf/bpf.h>

#include "31_batch.h"

#define ENOTSUPP 524 /* the kernel's own; user space has no name for it */
#define CHUNK 16384
#define MOST_RETRIES 1000

static bool is_transient(int err)
{
	return err == -EAGAIN || err == -EINTR || err == -EBUSY;
}

static uint32_t chunk_of(uint32_t left)
{
	return left < CHUNK ? left : CHUNK;
}

static int update_each(const struct pcl_layout *map, const char *keys, const char *values,
		       uint32_t count, uint64_t flags, uint32_t *ret_done)
{
	uint32_t i, retries = 0;
	int err = 0;

	for (i = 0; i < count;) {
		err = bpf_map_update_elem(map->fd, keys + (size_t)i * map->key_size,
					  values + (size_t)i * map->value_size, flags);
		if (is_transient(err) && ++retries < MOST_RETRIES)
			continue;
		if (err)
			break;
		retries = 0;
		i++;
	}
	*ret_done += i;
	return err;
}

int pcl_map_update(const struct pcl_layout *map, const char *keys, const char *values,
		   uint32_t count, uint64_t flags, uint32_t *ret_done)
{
	/* The batch takes no flag but BPF_F_LOCK. */
	bool batch = map->batch_update && !flags;
	int err = 0;

	*ret_done = 0;
	while (*ret_done < count && !err) {
		LIBBPF_OPTS(bpf_map_batch_opts, opts);
		uint32_t chunk = batch ? chunk_of(count - *ret_done) : count - *ret_done;
		const char *chunk_keys = keys + (size_t)*ret_done * map->key_size;
		const char *chunk_values = values + (size_t)*ret_done * map->value_size;
		__u32 written = chunk;

		if (batch) {
			err = bpf_map_update_batch(map->fd, chunk_keys, chunk_values, &written,
						   &opts);
			if (!err) {
				*ret_done += chunk;
				continue;
			}
			batch = err != -ENOTSUPP && err != -EINVAL;
		}
		/* Kernels disagree on what `written` says after an error, and writing an entry
		 * again does no harm: write the chunk one by one, which finds the bad entry. */
		err = update_each(map, chunk_keys, chunk_values, chunk, flags, ret_done);
	}
	return err;
}

static int delete_each(const struct pcl_layout *map, const char *keys, uint32_t count,
		       uint32_t *ret_deleted)
{
	uint32_t i, retries = 0;
	int err;

	for (i = 0; i < count;) {
		err = bpf_map_delete_elem(map->fd, keys + (size_t)i * map->key_size);
		if (is_transient(err) && ++retries < MOST_RETRIES)
			continue;
		if (err && err != -ENOENT)
			return err;
		*ret_deleted += !err;
		retries = 0;
		i++;
	}
	return 0;
}

int pcl_map_delete(const struct pcl_layout *map, const char *keys, uint32_t count,
		   uint32_t *ret_deleted)
{
	uint32_t done = 0, retries = 0;
	int err;

	*ret_deleted = 0;
	while (map->batch && done < count) {
		LIBBPF_OPTS(bpf_map_batch_opts, opts);
		__u32 deleted = chunk_of(count - done);

		err = bpf_map_delete_batch(map->fd, keys + (size_t)done * map->key_size, &deleted,
					   &opts);
		if (err && err != -ENOENT && !is_transient(err))
			break; /* nothing of this batch was deleted */
		*ret_deleted += deleted;
		done += deleted;
		retries = deleted ? 0 : retries + 1;
		if (err == -ENOENT)
			done++; /* the key that is not there: evicted, or never was */
		else if (err && retries > MOST_RETRIES)
			return err;
	}
	return delete_each(map, keys + (size_t)done * map->key_size, count - done, ret_deleted);
}
