// SPDX-License-Identifier: Apache-2.0
/*
 * MurmurHash3 x64 128 (Austin Appleby, public domain as an algorithm), written from its
 * description: two lanes of 64 bits, 16 bytes of text a round. Reads little-endian words.
 */
#include <stddef.h>
#include <stdint.h>

#include "cdef.h"

static const uint64_t C1 = 0x87c37b91114253d5, C2 = 0x4cf5ad432745937f;

static uint64_t rotate(uint64_t word, unsigned int bits)
{
	return word << bits | word >> (64 - bits);
}

static uint64_t finish(uint64_t word)
{
	word ^= word >> 33;
	word *= 0xff51afd7ed558ccd;
	word ^= word >> 33;
	word *= 0xc4ceb9fe1a85ec53;
	return word ^ word >> 33;
}

/* Up to eight bytes as a little-endian word. */
static uint64_t load(const uint8_t *text, size_t size)
{
	uint64_t word = 0;

	for (size_t i = 0; i < size; i++)
		word |= (uint64_t)text[i] << 8 * i;
	return word;
}

static uint64_t scramble_low(uint64_t word)
{
	return rotate(word * C1, 31) * C2;
}

static uint64_t scramble_high(uint64_t word)
{
	return rotate(word * C2, 33) * C1;
}

void pcl_murmur3_128(const uint8_t *text, size_t size, uint32_t seed, uint64_t hash[2])
{
	uint64_t low = seed, high = seed;
	size_t left = size;

	for (; left >= 16; left -= 16, text += 16) {
		low = (rotate(low ^ scramble_low(load(text, 8)), 27) + high) * 5 + 0x52dce729;
		high = (rotate(high ^ scramble_high(load(text + 8, 8)), 31) + low) * 5 + 0x38495ab5;
	}
	if (left > 8)
		high ^= scramble_high(load(text + 8, left - 8));
	low ^= scramble_low(load(text, left < 8 ? left : 8));
	low ^= size;
	high ^= size;
	low += high;
	high += low;
	low = finish(low);
	high = finish(high);
	hash[0] = low + high;
	hash[1] = high + hash[0];
}
