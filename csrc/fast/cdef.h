/* MurmurHash3: 128 bits of a text. */
void pcl_murmur3_128(const uint8_t *text, size_t size, uint32_t seed, uint64_t hash[2]);

/* A backend's key, as `Backend.key` packs it. */
struct pcl_backend {
	uint16_t port;
	uint8_t proto;
	uint8_t cluster_id;
	uint8_t version;	/* 4: four bytes of addr count, 6: all */
	uint8_t internal;
	uint8_t addr[16];
};

/* Maglev: the text that stands for a backend on every node, into 80 bytes; its length. */
size_t pcl_backend_text(const struct pcl_backend *backend, char *text);

/*
 * Maglev: the offsets and skips of n backends for a table of `size`, in the order of their texts;
 * order[i] is the place of the i-th among `backends`. 0, or -1 where memory is short.
 */
int pcl_maglev_place(const struct pcl_backend *backends, uint32_t n, uint32_t seed, uint32_t size,
		     uint32_t *order, uint32_t *offsets, uint32_t *skips);

/*
 * Maglev: fill `table` with backend positions 0..n-1; a turn is taken by one backend.
 * Without `weights` they take turns evenly. 0, or -1 where memory is short.
 */
int pcl_maglev_fill(uint32_t *table, uint32_t size, const uint32_t *offsets, const uint32_t *skips,
		    const uint16_t *weights, uint32_t n);
