/* Ring buffers: records copied in bulk out of the memory that is shared with the kernel.
 *
 * A ring has one consumer: the caller serialises all calls on one `struct pcl_ring`.
 */

struct pcl_ring;

/* 0 or -errno; -EINVAL if the map is not a ring buffer. */
int pcl_ring_open(int map_fd, struct pcl_ring **ret);
void pcl_ring_close(struct pcl_ring *ring);
size_t pcl_ring_size(const struct pcl_ring *ring);

/* Bytes that producers have reserved and nobody has consumed, headers included. */
size_t pcl_ring_pending(const struct pcl_ring *ring);

/* The number of records copied, each of exactly `record_size` bytes. It stops at a record of
 * another size, which stays in the ring and whose size is put into `odd_size` (else 0). */
size_t pcl_ring_take(struct pcl_ring *ring, void *out, size_t record_size, size_t max,
		     size_t *odd_size);

/* The number of records copied one after another into `out`, their sizes into `sizes`. It stops
 * at a record that does not fit, whose size is put into `odd_size` (else 0). */
size_t pcl_ring_take_any(struct pcl_ring *ring, void *out, size_t out_size, uint32_t *sizes,
			 size_t max, size_t *odd_size);
