/* Whole maps: many entries in one call, by the kernel's batches where it has them.
 *
 * Every function returns 0 or -errno, and says in its last argument how far it came.
 */

struct pcl_layout {
	int fd;
	uint32_t key_size;
	uint32_t value_size; /* as copied by the kernel: of all CPUs in a per-CPU map */
	uint32_t max_entries;
	uint32_t room;       /* entries of the first batch that is read; it grows */
	bool batch;          /* try the kernel's batches */
	bool batch_update;   /* and to write */
	bool slots;          /* keys are never deleted, but a slot may be empty */
	bool unique;         /* a batch read cannot meet a key twice (hash buckets, slots) */
	bool trie;           /* a longest-prefix trie */
};

/* All zero at first; `keys` and `values` are the caller's to free with pcl_column_free(), also
 * after an error. */
struct pcl_entries {
	char *keys;
	char *values;
	uint32_t count;
	uint32_t capacity;
	uint32_t expected; /* the most entries that there can be */
	uint32_t key_size;
	uint32_t value_size;
};

void pcl_column_free(char *column);

/* All entries, each key once. -EAGAIN if the map kept changing faster than it could be read. */
int pcl_map_read(const struct pcl_layout *map, struct pcl_entries *ret);

/* One entry, deleted as it is read. */
int pcl_map_take(int fd, const void *key, void *value);

/* All entries, deleted as they are read. On an error `ret` holds those that are gone already. */
int pcl_map_read_and_delete(const struct pcl_layout *map, struct pcl_entries *ret);

/* `flags` as of bpf_map_update_elem(). On an error the first `ret_done` are written. */
int pcl_map_update(const struct pcl_layout *map, const char *keys, const char *values,
		   uint32_t count, uint64_t flags, uint32_t *ret_done);

/* Keys that are not there are passed over. */
int pcl_map_delete(const struct pcl_layout *map, const char *keys, uint32_t count,
		   uint32_t *ret_deleted);
