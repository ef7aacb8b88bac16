/* libbpf's messages, gathered for each thread until Python takes them.
 *
 * No call from C into Python: libbpf may print while the interpreter is shutting down.
 */

/* Take libbpf's prints over from stderr; once a process. */
void pcl_log_init(void);

/* Whether debug messages are gathered too (process-wide; off at first). */
void pcl_log_debug(bool enabled);

/* Whether this thread has messages to take. */
bool pcl_log_pending(void);

/* This thread's messages, or NULL: records of a digit (enum libbpf_print_level) and a
 * NUL-terminated text, `ret_size` bytes in all. `ret_lost` is the number of messages for which
 * there was no memory. Give it back with pcl_log_free(). */
char *pcl_log_take(size_t *ret_size, unsigned int *ret_lost);
void pcl_log_free(char *text);
