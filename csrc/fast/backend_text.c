// SPDX-License-Identifier: Apache-2.0
/*
 * The text by which Maglev knows a backend on every node: "[10.0.0.1:80/TCP,State:active]". The
 * address is written as Go does it: IPv6 by RFC 5952, in brackets of its own.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "cdef.h"

static char *put_text(char *at, const char *text)
{
	while (*text)
		*at++ = *text++;
	return at;
}

static char *put_number(char *at, uint32_t number)
{
	char digits[10];
	int count = 0;

	do
		digits[count++] = '0' + number % 10;
	while (number /= 10);
	while (count)
		*at++ = digits[--count];
	return at;
}

static char *put_hex(char *at, uint32_t word)
{
	int shift = 12;

	while (shift && !(word >> shift))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		*at++ = "0123456789abcdef"[word >> shift & 0xf];
	return at;
}

static char *put_ipv4(char *at, const uint8_t addr[4])
{
	for (int i = 0; i < 4; i++) {
		if (i)
			*at++ = '.';
		at = put_number(at, addr[i]);
	}
	return at;
}

/* The first of the longest runs of zero words, if one has two or more. */
static int longest_zeros(const uint32_t words[8], int *length)
{
	int first = -1;

	*length = 1;
	for (int i = 0, run = 0; i < 8; i++) {
		run = words[i] ? 0 : run + 1;
		if (run > *length) {
			*length = run;
			first = i - run + 1;
		}
	}
	return first;
}

static char *put_ipv6(char *at, const uint8_t addr[16])
{
	static const uint8_t v4_mapped[12] = { [10] = 0xff, [11] = 0xff };
	uint32_t words[8];
	int zeros, length;

	if (!memcmp(addr, v4_mapped, sizeof(v4_mapped)))
		return put_ipv4(put_text(at, "::ffff:"), addr + sizeof(v4_mapped));
	for (int i = 0; i < 8; i++)
		words[i] = addr[2 * i] << 8 | addr[2 * i + 1];
	zeros = longest_zeros(words, &length);
	for (int i = 0; i < 8; i++) {
		if (i == zeros) {
			at = put_text(at, "::");
			i += length - 1;
			continue;
		}
		if (i && i != zeros + length)
			*at++ = ':';
		at = put_hex(at, words[i]);
	}
	return at;
}

static const char *protocol_name(uint8_t proto)
{
	return proto == 6 ? "TCP" : proto == 17 ? "UDP" : "SCTP";
}

size_t pcl_backend_text(const struct pcl_backend *backend, char *text)
{
	char *at = put_text(text, backend->version == 6 ? "[[" : "[");

	at = backend->version == 6 ? put_ipv6(at, backend->addr) : put_ipv4(at, backend->addr);
	if (backend->cluster_id)
		at = put_number(put_text(at, "@"), backend->cluster_id);
	at = put_number(put_text(at, backend->version == 6 ? "]:" : ":"), backend->port);
	at = put_text(put_text(at, "/"), protocol_name(backend->proto));
	at = put_text(at, backend->internal ? "/i,State:active]" : ",State:active]");
	return at - text;
}
