// SPDX-License-Identifier: Apache-2.0
/* libbpf's messages, gathered in a buffer for each thread.
 *
 * The verifier's log of a rejected program comes this way too (libbpf prints it in one message),
 * so the buffer grows as needed. Every Python call that may print takes the buffer afterwards;
 * what a thread leaves untaken at its end is freed by the key's destructor.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <bpf/libbpf.h>

#include "10_log.h"

struct log {
	char *text;
	size_t size;
	size_t capacity;
	unsigned int lost;
};

static pthread_key_t log_key;
static pthread_once_t log_once = PTHREAD_ONCE_INIT;
static atomic_bool debug_enabled;

static void log_free(void *data)
{
	struct log *log = data;

	free(log->text);
	free(log);
}

static struct log *log_get_or_create(void)
{
	struct log *log = pthread_getspecific(log_key);

	if (log)
		return log;
	log = calloc(1, sizeof(*log));
	if (log && pthread_setspecific(log_key, log)) {
		free(log);
		return NULL;
	}
	return log;
}

static bool log_reserve(struct log *log, size_t more)
{
	size_t capacity = log->capacity ? log->capacity : 1024;
	char *text;

	while (capacity - log->size < more)
		capacity *= 2;
	if (capacity == log->capacity)
		return true;
	text = realloc(log->text, capacity);
	if (!text)
		return false;
	log->text = text;
	log->capacity = capacity;
	return true;
}

static int log_print(enum libbpf_print_level level, const char *format, va_list args)
{
	va_list again;
	struct log *log;
	int length;

	if (level == LIBBPF_DEBUG && !atomic_load_explicit(&debug_enabled, memory_order_relaxed))
		return 0;
	log = log_get_or_create();
	if (!log)
		return 0;
	va_copy(again, args);
	length = vsnprintf(NULL, 0, format, args);
	if (length < 0 || !log_reserve(log, (size_t)length + 2)) {
		log->lost++;
	} else {
		log->text[log->size] = (char)('0' + level);
		vsnprintf(log->text + log->size + 1, (size_t)length + 1, format, again);
		log->size += (size_t)length + 2;
	}
	va_end(again);
	return length;
}

static void log_init_once(void)
{
	if (!pthread_key_create(&log_key, log_free))
		libbpf_set_print(log_print);
}

void pcl_log_init(void)
{
	pthread_once(&log_once, log_init_once);
}

void pcl_log_debug(bool enabled)
{
	atomic_store_explicit(&debug_enabled, enabled, memory_order_relaxed);
}

bool pcl_log_pending(void)
{
	const struct log *log = pthread_getspecific(log_key);

	return log && (log->size || log->lost);
}

char *pcl_log_take(size_t *ret_size, unsigned int *ret_lost)
{
	struct log *log = pthread_getspecific(log_key);
	char *text;

	*ret_size = log ? log->size : 0;
	*ret_lost = log ? log->lost : 0;
	if (!log)
		return NULL;
	text = log->text;
	*log = (struct log){};
	return text;
}

void pcl_log_free(char *text)
{
	free(text);
}
