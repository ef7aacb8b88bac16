/* Maglev: the 128-bit hashes of n texts that lie one after the other; text i ends at ends[i]. */
void pcl_murmur3_128(const uint8_t *texts, const uint64_t *ends, uint32_t n, uint32_t seed,
		     uint64_t *hashes);

/*
 * Maglev: fill `table` with backend positions 0..n-1; a turn is taken by one backend.
 * Without `weights` they take turns evenly. 0, or -1 where memory is short.
 */
int pcl_maglev_fill(uint32_t *table, uint32_t size, const uint32_t *offsets, const uint32_t *skips,
		    const uint16_t *weights, uint32_t n);
