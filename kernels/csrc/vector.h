/* Vectors of fp32 as wide as the instruction set, through GCC's vector extension.
 *
 * Activations are fp32 or bf16 in memory and fp32 in registers. The element type is an argument that
 * is constant at every call, so that each inlined copy keeps only its own branch.
 */
#ifndef ROOTLET_VECTOR_H
#define ROOTLET_VECTOR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

/* element types, numbered as the launchers pass them */
enum { F32 = 0, BF16 = 1 };

typedef float vfloat __attribute__((vector_size(LANES * 4)));
typedef int32_t vint __attribute__((vector_size(LANES * 4)));
typedef uint32_t vuint __attribute__((vector_size(LANES * 4)));
typedef uint16_t vhalf __attribute__((vector_size(LANES * 2)));

INLINE size_t element_size(int type) { return type == BF16 ? 2 : 4; }

INLINE vfloat splat(float x) { return x - (vfloat){0}; }

/* 0, 1, 2, ... */
INLINE vint lane_numbers(void) {
    vint x;
    for (int lane = 0; lane < LANES; lane++) {
        x[lane] = lane;
    }
    return x;
}

INLINE vfloat load_fp32(const float *p) {
    vfloat x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void store_fp32(float *p, vfloat x) { memcpy(p, &x, sizeof x); }

/* Between 16 and 32 bits an element; __builtin_convertvector takes several instructions for each. */
#if defined(__AVX512F__)
INLINE vuint widen(vhalf x) { return (vuint)_mm512_cvtepu16_epi32((__m256i)x); }
INLINE vhalf narrow(vuint x) { return (vhalf)_mm512_cvtepi32_epi16((__m512i)x); }
#elif defined(__AVX2__)
INLINE vuint widen(vhalf x) { return (vuint)_mm256_cvtepu16_epi32((__m128i)x); }
INLINE vhalf narrow(vuint x) {
    __m256i packed = _mm256_packus_epi32((__m256i)x, (__m256i)x);
    return (vhalf)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
#else
INLINE vuint widen(vhalf x) { return __builtin_convertvector(x, vuint); }
INLINE vhalf narrow(vuint x) { return __builtin_convertvector(x, vhalf); }
#endif

/* LANES elements of type `type` from element i on. */
INLINE vfloat load(const void *base, ptrdiff_t i, int type) {
    if (type == F32) {
        return load_fp32((const float *)base + i);
    }
    vhalf x;
    memcpy(&x, (const uint16_t *)base + i, sizeof x);
    return (vfloat)(widen(x) << 16);
}

/* bf16 is the upper half of fp32; rounds to nearest, ties to even, and keeps NaN a NaN. */
INLINE vuint bf16_bits(vfloat x) {
    vuint bits = (vuint)x;
    vuint rounded = bits + 0x7fff + ((bits >> 16) & 1);
    vuint quiet = bits | 0x400000;
    vuint is_nan = (vuint)(x != x);
    return ((quiet & is_nan) | (rounded & ~is_nan)) >> 16;
}

INLINE void store(void *base, ptrdiff_t i, vfloat x, int type) {
    if (type == F32) {
        store_fp32((float *)base + i, x);
        return;
    }
    vhalf half = narrow(bf16_bits(x));
    memcpy((uint16_t *)base + i, &half, sizeof half);
}

/* One element, for the ends of rows. */
INLINE float load_one(const void *base, ptrdiff_t i, int type) {
    if (type == F32) {
        return ((const float *)base)[i];
    }
    uint32_t bits = (uint32_t)((const uint16_t *)base)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE void store_one(void *base, ptrdiff_t i, float x, int type) {
    if (type == F32) {
        ((float *)base)[i] = x;
        return;
    }
    ((uint16_t *)base)[i] = (uint16_t)bf16_bits(splat(x))[0];
}

/* The first n < LANES elements; the other lanes are zero. */
INLINE vfloat load_part(const void *base, ptrdiff_t i, int n, int type) {
    vfloat x = {0};
    for (int lane = 0; lane < n; lane++) {
        x[lane] = load_one(base, i + lane, type);
    }
    return x;
}

INLINE void store_part(void *base, ptrdiff_t i, vfloat x, int n, int type) {
    for (int lane = 0; lane < n; lane++) {
        store_one(base, i + lane, x[lane], type);
    }
}

INLINE vfloat select_lanes(vint mask, vfloat yes, vfloat no) {
    return (vfloat)(((vint)yes & mask) | ((vint)no & ~mask));
}

/* a > b ? a : b and a < b ? a : b, so b where either is NaN. GNU C has no ?: on vectors, and what it
 * makes of the mask form is not the one instruction that x86 has. */
#if defined(__AVX512F__)
INLINE vfloat vmax(vfloat a, vfloat b) { return (vfloat)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vfloat vmin(vfloat a, vfloat b) { return (vfloat)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
INLINE vfloat vmax(vfloat a, vfloat b) { return (vfloat)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vfloat vmin(vfloat a, vfloat b) { return (vfloat)_mm256_min_ps((__m256)a, (__m256)b); }
#else
INLINE vfloat vmax(vfloat a, vfloat b) { return select_lanes(a > b, a, b); }
INLINE vfloat vmin(vfloat a, vfloat b) { return select_lanes(a < b, a, b); }
#endif

/* Four 32-bit elements in each 16 bytes of a and b, interleaved: the two lower ones, the two upper
 * ones, or as pairs. */
#if defined(__AVX512F__)
INLINE vuint low_words(vuint a, vuint b) { return (vuint)_mm512_unpacklo_epi32((__m512i)a, (__m512i)b); }
INLINE vuint high_words(vuint a, vuint b) { return (vuint)_mm512_unpackhi_epi32((__m512i)a, (__m512i)b); }
INLINE vuint low_pairs(vuint a, vuint b) { return (vuint)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b); }
INLINE vuint high_pairs(vuint a, vuint b) { return (vuint)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b); }
#elif defined(__AVX2__)
INLINE vuint low_words(vuint a, vuint b) { return (vuint)_mm256_unpacklo_epi32((__m256i)a, (__m256i)b); }
INLINE vuint high_words(vuint a, vuint b) { return (vuint)_mm256_unpackhi_epi32((__m256i)a, (__m256i)b); }
INLINE vuint low_pairs(vuint a, vuint b) { return (vuint)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b); }
INLINE vuint high_pairs(vuint a, vuint b) { return (vuint)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b); }
#else
INLINE vuint low_words(vuint a, vuint b) { return __builtin_shuffle(a, b, (vuint){0, 4, 1, 5}); }
INLINE vuint high_words(vuint a, vuint b) { return __builtin_shuffle(a, b, (vuint){2, 6, 3, 7}); }
INLINE vuint low_pairs(vuint a, vuint b) { return __builtin_shuffle(a, b, (vuint){0, 1, 4, 5}); }
INLINE vuint high_pairs(vuint a, vuint b) { return __builtin_shuffle(a, b, (vuint){2, 3, 6, 7}); }
#endif

/* 16 bytes from each of the addresses base + at[0], base + at[4], base + at[8], ... side by side. */
INLINE vuint load_every_fourth(const char *base, const int64_t *at) {
#if defined(__AVX512F__)
    __m512i x = _mm512_castsi128_si512(_mm_loadu_si128((const void *)(base + at[0])));
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const void *)(base + at[4])), 1);
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const void *)(base + at[8])), 2);
    return (vuint)_mm512_inserti32x4(x, _mm_loadu_si128((const void *)(base + at[12])), 3);
#elif defined(__AVX2__)
    __m256i x = _mm256_castsi128_si256(_mm_loadu_si128((const void *)(base + at[0])));
    return (vuint)_mm256_inserti128_si256(x, _mm_loadu_si128((const void *)(base + at[4])), 1);
#else
    vuint x;
    memcpy(&x, base + at[0], sizeof x);
    return x;
#endif
}

/* Four 32-bit words from each of LANES addresses: x[i] becomes word i of each, in order. */
INLINE void load_transposed(vuint x[4], const char *base, const int64_t *at) {
    vuint row[4];
    for (int i = 0; i < 4; i++) {
        row[i] = load_every_fourth(base, at + i);
    }
    vuint a = low_words(row[0], row[1]), b = high_words(row[0], row[1]);
    vuint c = low_words(row[2], row[3]), d = high_words(row[2], row[3]);
    x[0] = low_pairs(a, c);
    x[1] = high_pairs(a, c);
    x[2] = low_pairs(b, d);
    x[3] = high_pairs(b, d);
}

typedef float quadf __attribute__((vector_size(16)));

INLINE quadf quad_of(vfloat x, int k) {
    quadf part;
    memcpy(&part, (const char *)&x + k * sizeof part, sizeof part);
    return part;
}

INLINE float lanes_sum(vfloat x) {
    quadf sum = quad_of(x, 0);
    for (int k = 1; k < LANES / 4; k++) {
        sum += quad_of(x, k);
    }
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

INLINE float larger(float a, float b) { return a > b ? a : b; }

INLINE float lanes_max(vfloat x) {
    float max[4];
    for (int i = 0; i < 4; i++) {
        max[i] = x[i];
        for (int lane = i + 4; lane < LANES; lane += 4) {
            max[i] = larger(max[i], x[lane]);
        }
    }
    return larger(larger(max[0], max[1]), larger(max[2], max[3]));
}

/* 2^x with a relative error near 1e-7, x clamped to [-126, 127]; 2^0 is exactly 1, NaN stays NaN.
 * x = n + f with n whole and |f| <= 1/2; 2^f is a polynomial fitted for least relative error. */
INLINE vfloat vexp2(vfloat x) {
    const vfloat shift = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    x = vmin(splat(127.0f), vmax(splat(-126.0f), x));
    vfloat shifted = x + shift;
    vfloat f = x - (shifted - shift);
    vfloat y = 0.00132647261f * f + 0.00967151299f;
    y = y * f + 0.0555073358f;
    y = y * f + 0.240222424f;
    y = y * f + 0.693147004f;
    y = y * f + 1.0f;
    return (vfloat)((vuint)y + ((vuint)shifted << 23));
}

INLINE vfloat vexp(vfloat x) { return vexp2(x * 1.44269504f); }

/* 1 / (1 + e^-x) */
INLINE vfloat vsigmoid(vfloat x) { return 1.0f / (1.0f + vexp(-x)); }

INLINE vfloat vtanh(vfloat x) { return 2.0f * vsigmoid(2.0f * x) - 1.0f; }

#endif
