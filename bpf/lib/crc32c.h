/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How a CRC32c (RFC 9260, appendix A) follows a change of 32 bits, without the bytes after them.
 *
 * A CRC is linear: that of two messages of one length differs by the CRC, without its initial and
 * final values, of their difference. After the four bytes that differ come only zeros, each of which
 * multiplies by x^8 modulo the polynomial; many at once do by a power of it.
 */
#ifndef PCL_CRC32C_H
#define PCL_CRC32C_H

#include "common.h"

#define CRC32C_POLYNOMIAL 0x82f63b78

/* a * b modulo the polynomial; the highest bit stands for x^0. */
static __always_inline __u32 crc32c_multiply(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (int i = 0; i < 32; i++) {
		product ^= b & -(a >> 31);
		a <<= 1;
		b = b >> 1 ^ (CRC32C_POLYNOMIAL & -(b & 1));
	}
	return product;
}

/*
 * What the CRC of a message changes by, as an exclusive or, where 32 bits of it change by `difference`
 * that begin `bytes` (at most 65535) before its end. All three are as they lie in the packet.
 */
__noinline __u32 crc32c_change(__u32 difference, __u32 bytes)
{
	__u32 power = 0x00800000;	/* x^8: one byte */

	for (int i = 0; i < 16; i++) {
		if (bytes >> i & 1)
			difference = crc32c_multiply(power, difference);
		power = crc32c_multiply(power, power);
	}
	return difference;
}

#endif
