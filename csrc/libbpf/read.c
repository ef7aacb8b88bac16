// SPDX-License-Identifier: Apache-2.0
/* Reading a whole map while others change it.
 *
 * A hash map's batches go bucket by bucket under the bucket's lock, so no key comes twice and none
 * is left out. A walk by BPF_MAP_GET_NEXT_KEY, and the batches of a longest-prefix trie, which are
 * such a walk inside the kernel, start again from the first key when the key they stand on has
 * gone; so keys that were met are remembered, and the number of steps is bounded.
 *
 * A walk may leave out a key that stays: a node that is deleted is used again at once, also under a
 * reader that stands on it, who then goes on wherever the node is now. Hash maps have always done
 * so, tries do since Linux 6.13. So what is walked is read until a reading meets nothing new.
 *
 * In tries before 6.13 (commit 27abc7b3fa2e), asked for what follows a key that has gone, the
 * kernel may answer with a later key; there the batches are not used, and the walk asks again unless
 * the key it stood on is still there, as far as a lookup can tell (a shorter prefix that covers it
 * answers for it).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "entries.h"
#include "keyset.h"

#define ENOTSUPP 524 /* the kernel's own; user space has no name for it */
#define MOST_ROOM 65536
#define LONGEST_BUCKET (1U << 30)
#define MOST_RETRIES 64
#define STEPS_BACK 64
#define MOST_READINGS 16

static bool too_many(uint64_t steps, uint32_t found)
{
	return steps > 8 * ((uint64_t)found + MOST_ROOM);
}

/* Move the entries after `count` that are new down to it. */
static int keep_new(struct pcl_entries *entries, struct keyset *seen, uint32_t read)
{
	uint32_t first = entries->count, i;
	int is_new;

	for (i = first; i < first + read; i++) {
		if (i != entries->count) {
			memcpy(entries_key(entries, entries->count), entries_key(entries, i),
			       entries->key_size);
			memcpy(entries_value(entries, entries->count), entries_value(entries, i),
			       entries->value_size);
		}
		is_new = keyset_add(seen, entries->keys, entries->count);
		if (is_new < 0)
			return is_new;
		entries->count += is_new;
	}
	return 0;
}

static int next_batch(const struct pcl_layout *map, bool delete, void *from, void *to,
		      const struct pcl_entries *ret, __u32 *count)
{
	LIBBPF_OPTS(bpf_map_batch_opts, opts);
	char *keys = entries_key(ret, ret->count);
	char *values = entries_value(ret, ret->count);

	if (delete)
		return bpf_map_lookup_and_delete_batch(map->fd, from, to, keys, values, count,
						       &opts);
	return bpf_map_lookup_batch(map->fd, from, to, keys, values, count, &opts);
}

/* -ENOTSUPP or -EINVAL, with nothing read, where the map has no batches. */
static int read_batches(const struct pcl_layout *map, bool delete, struct keyset *seen,
			struct pcl_entries *ret)
{
	/* A hash map's position is a 32-bit number, any other's is a key. */
	size_t position_size = map->key_size > 8 ? map->key_size : 8;
	char *from = malloc(position_size), *to = malloc(position_size), *swap;
	uint32_t room = map->room, retries = 0;
	uint64_t steps = 0;
	bool started = false;
	__u32 count;
	int err;

	if (!from || !to) {
		err = -ENOMEM;
		goto out;
	}
	for (;;) {
		err = entries_reserve(ret, room);
		if (err)
			goto out;
		count = room;
		err = next_batch(map, delete, started ? from : NULL, to, ret, &count);
		if (err && err != -ENOENT && err != -ENOSPC && err != -EINTR && err != -EAGAIN)
			goto out;
		steps += count;
		if (map->unique) {
			ret->count += count;
		} else {
			int failed = keep_new(ret, seen, count);

			if (failed) {
				err = failed;
				goto out;
			}
		}
		if (err == -ENOENT) {
			err = 0;
			goto out;
		}
		if (err == -ENOSPC && room >= LONGEST_BUCKET)
			goto out;
		if (count) {
			swap = from;
			from = to;
			to = swap;
			started = true;
			retries = 0;
		} else if (err != -ENOSPC && ++retries > MOST_RETRIES) {
			err = -EAGAIN;
			goto out;
		}
		if (err == -ENOSPC || room < MOST_ROOM)
			room *= 2;
		if (!map->unique && too_many(steps, ret->count)) {
			err = -EAGAIN;
			goto out;
		}
	}
out:
	free(from);
	free(to);
	return err;
}

/* The newest of the entries that were read which the map still has, or -1. */
static int64_t newest_alive(const struct pcl_layout *map, const struct pcl_entries *ret,
			    char *value)
{
	int64_t i;

	for (i = (int64_t)ret->count - 1; i >= 0 && i >= (int64_t)ret->count - STEPS_BACK; i--)
		if (!bpf_map_lookup_elem(map->fd, entries_key(ret, (uint32_t)i), value))
			return i;
	return -1;
}

/* Whether a trie of this kernel begins anew after a key that has gone. Tried once: of two keys, the
 * one asked for would lie between them, on the first one's branch. */
static bool trie_begins_anew(void)
{
	struct trie_key {
		__u32 prefixlen;
		__u8 bits[4];
	} low = { 32, { 0 } }, high = { 32, { 0x80 } }, gone = { 32, { 0x40 } }, next;
	LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = BPF_F_NO_PREALLOC);
	static int known = -1;
	char value = 0;
	int fd;

	if (known >= 0)
		return known;
	fd = bpf_map_create(BPF_MAP_TYPE_LPM_TRIE, "trie_walk", sizeof(low), sizeof(value), 2,
			    &opts);
	if (fd < 0)
		return false;
	known = !bpf_map_update_elem(fd, &low, &value, BPF_ANY) &&
		!bpf_map_update_elem(fd, &high, &value, BPF_ANY) &&
		!bpf_map_get_next_key(fd, &gone, &next) && !memcmp(&next, &low, sizeof(low));
	close(fd);
	return known;
}

static int walk(const struct pcl_layout *map, struct keyset *seen, struct pcl_entries *ret)
{
	char *at = malloc(map->key_size), *scratch = malloc(map->value_size);
	bool check = map->trie && !trie_begins_anew();
	bool started = false, stepped_back = false;
	uint64_t steps = 0;
	int err = at && scratch ? 0 : -ENOMEM;

	while (!err) {
		char *key;
		int is_new;

		err = entries_reserve(ret, 1);
		if (err)
			break;
		key = entries_key(ret, ret->count);
		err = bpf_map_get_next_key(map->fd, started ? at : NULL, key);
		if (check && started && bpf_map_lookup_elem(map->fd, at, scratch)) {
			int64_t alive = newest_alive(map, ret, scratch);

			started = alive >= 0;
			if (started)
				memcpy(at, entries_key(ret, (uint32_t)alive), map->key_size);
			err = too_many(++steps, ret->count) ? -EAGAIN : 0;
			continue;
		}
		if (err)
			break;
		if (!map->slots && too_many(++steps, ret->count)) {
			err = -EAGAIN;
			break;
		}
		err = bpf_map_lookup_elem(map->fd, key, entries_value(ret, ret->count));
		if (err == -ENOENT) {
			/* An empty slot is passed over; a key that vanished is asked for again
			 * from its predecessor. */
			if (map->slots) {
				memcpy(at, key, map->key_size);
				started = true;
			}
			err = 0;
			continue;
		}
		if (err)
			break;
		is_new = map->slots ? 1 : keyset_add(seen, ret->keys, ret->count);
		if (is_new < 0) {
			err = is_new;
			break;
		}
		if (is_new) {
			memcpy(at, key, map->key_size);
			stepped_back = false;
			ret->count++;
		} else {
			/* The key we stood on has gone and the kernel began anew. Go on from the
			 * newest key that is left, once; else walk through what we know. */
			int64_t alive = stepped_back ? -1 : newest_alive(map, ret, scratch);

			memcpy(at, alive >= 0 ? entries_key(ret, (uint32_t)alive) : key,
			       map->key_size);
			stepped_back = true;
		}
		started = true;
	}
	free(at);
	free(scratch);
	return err == -ENOENT ? 0 : err;
}

/* Add what `more` has and `ret` has not; how many those were, or -errno. */
static int64_t merge(const struct pcl_entries *more, struct keyset *seen, struct pcl_entries *ret)
{
	int64_t added = 0;
	uint32_t i;

	for (i = 0; i < more->count; i++) {
		int is_new = entries_reserve(ret, 1);

		if (is_new)
			return is_new;
		memcpy(entries_key(ret, ret->count), entries_key(more, i), ret->key_size);
		memcpy(entries_value(ret, ret->count), entries_value(more, i), ret->value_size);
		is_new = keyset_add(seen, ret->keys, ret->count);
		if (is_new < 0)
			return is_new;
		ret->count += is_new;
		added += is_new;
	}
	return added;
}

static bool has_no_batches(int err, const struct pcl_entries *ret)
{
	return (err == -ENOTSUPP || err == -EINVAL) && !ret->count;
}

/* One reading, which may leave something out. */
static int read_once(const struct pcl_layout *map, struct keyset *seen, struct pcl_entries *ret)
{
	int err = -ENOTSUPP;

	if (map->trie && map->batch && trie_begins_anew())
		err = read_batches(map, false, seen, ret);
	return has_no_batches(err, ret) ? walk(map, seen, ret) : err;
}

/* As many readings as it takes until one meets nothing new. */
static int read_until_settled(const struct pcl_layout *map, struct keyset *seen,
			      struct pcl_entries *ret)
{
	int64_t added = 1;
	uint32_t readings;

	for (readings = 0; added > 0 && readings < MOST_READINGS; readings++) {
		struct pcl_entries found = { 0 };
		struct keyset met;

		added = keyset_init(&met, map->key_size);
		if (added)
			break;
		entries_init(&found, map);
		added = read_once(map, &met, &found);
		if (!added)
			added = merge(&found, seen, ret);
		keyset_deinit(&met);
		pcl_column_free(found.keys);
		pcl_column_free(found.values);
	}
	return added < 0 ? (int)added : 0;
}

int pcl_map_read(const struct pcl_layout *map, struct pcl_entries *ret)
{
	struct keyset seen;
	int err = keyset_init(&seen, map->key_size);

	if (err)
		return err;
	entries_init(ret, map);
	err = -ENOTSUPP;
	if (map->batch && !map->trie)
		err = read_batches(map, false, &seen, ret);
	if (has_no_batches(err, ret))
		err = map->slots ? walk(map, &seen, ret) : read_until_settled(map, &seen, ret);
	keyset_deinit(&seen);
	return err;
}

/* Since 5.14 a hash map does this in one step (commit 3e87f192b405); elsewhere what others write
 * between the two steps is lost. */
int pcl_map_take(int fd, const void *key, void *value)
{
	int err = bpf_map_lookup_and_delete_elem(fd, key, value);

	if (err != -ENOTSUPP && err != -EINVAL)
		return err;
	err = bpf_map_lookup_elem(fd, key, value);
	return err ? err : bpf_map_delete_elem(fd, key);
}

static int walk_and_delete(const struct pcl_layout *map, struct pcl_entries *ret)
{
	uint32_t found, i;
	int err = pcl_map_read(map, ret);

	if (err)
		return err;
	found = ret->count;
	ret->count = 0;
	for (i = 0; i < found; i++) {
		err = pcl_map_take(map->fd, entries_key(ret, i), entries_value(ret, i));
		if (err == -ENOENT)
			continue;
		if (err)
			return err;
		if (i != ret->count) {
			memcpy(entries_key(ret, ret->count), entries_key(ret, i), ret->key_size);
			memcpy(entries_value(ret, ret->count), entries_value(ret, i),
			       ret->value_size);
		}
		ret->count++;
	}
	return 0;
}

int pcl_map_read_and_delete(const struct pcl_layout *map, struct pcl_entries *ret)
{
	int err = -ENOTSUPP;

	entries_init(ret, map);
	if (map->batch && map->unique)
		err = read_batches(map, true, NULL, ret);
	if (has_no_batches(err, ret))
		err = walk_and_delete(map, ret);
	return err;
}
