/* One vector type per kernel set: `vf` floats, `vi` int32, VW lanes (1 in the scalar set).
 * Arithmetic operators work on all of them (they are vector extensions or plain numbers). */
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define EDGE_INLINE static inline __attribute__((always_inline, unused))
#define EDGE_KERNEL static __attribute__((noinline, unused))
#define EDGE_UNROLL _Pragma("GCC unroll 64")

#if defined(EDGE_ISA_BASE) || defined(EDGE_ISA_DOTPROD) || defined(EDGE_ISA_I8MM)
#define EDGE_NEON 1
#elif defined(EDGE_ISA_AVX512VNNI) || defined(EDGE_ISA_AVXVNNI) || defined(EDGE_ISA_AVX2)
#define EDGE_X86 1
#endif

#if defined(EDGE_NEON)
#include <arm_neon.h>
typedef float32x4_t vf;
typedef int32x4_t vi;
enum { VW = 4 };
EDGE_INLINE vf vf_load(const float *p) { return vld1q_f32(p); }
EDGE_INLINE void vf_store(float *p, vf x) { vst1q_f32(p, x); }
EDGE_INLINE vf vf_splat(float x) { return vdupq_n_f32(x); }
EDGE_INLINE vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
EDGE_INLINE vf vf_max(vf a, vf b) { return vmaxq_f32(a, b); }
EDGE_INLINE vf vf_min(vf a, vf b) { return vminq_f32(a, b); }
EDGE_INLINE vf vf_abs(vf a) { return vabsq_f32(a); }
EDGE_INLINE vf vf_round(vf a) { return vrndnq_f32(a); }
EDGE_INLINE vf vf_copysign(vf size, vf sign) { return vbslq_f32(vdupq_n_u32(0x80000000u), sign, size); }
EDGE_INLINE vf vf_from_int(vi a) { return vcvtq_f32_s32(a); }
EDGE_INLINE vi vf_to_int(vf a) { return vcvtnq_s32_f32(a); }
EDGE_INLINE float vf_sum(vf a) { return vaddvq_f32(a); }
EDGE_INLINE float vf_hmax(vf a) { return vmaxvq_f32(a); }
EDGE_INLINE float vf_hmin(vf a) { return vminvq_f32(a); }
EDGE_INLINE vi vi_load(const int32_t *p) { return vld1q_s32(p); }
EDGE_INLINE vi vi_splat(int32_t x) { return vdupq_n_s32(x); }
EDGE_INLINE vi vi_max(vi a, vi b) { return vmaxq_s32(a, b); }
EDGE_INLINE int32_t vi_hmax(vi a) { return vmaxvq_s32(a); }
EDGE_INLINE vf vf_scale2(vf p, vi n) {
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(n, 23)));
}
EDGE_INLINE vf vf_from_int8(const int8_t *p) {
  int32_t word;
  memcpy(&word, p, 4);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(word))))));
}
EDGE_INLINE void vi_store_int8(int8_t *p, vi q) {
  int16x4_t half = vmovn_s32(q);
  int32_t word = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(half, half))), 0);
  memcpy(p, &word, 4);
}

#elif defined(EDGE_ISA_AVX512VNNI)
#include <immintrin.h>
typedef __m512 vf;
typedef int32_t vi __attribute__((vector_size(64), may_alias));
enum { VW = 16 };
EDGE_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
EDGE_INLINE void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
EDGE_INLINE vf vf_splat(float x) { return _mm512_set1_ps(x); }
EDGE_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
EDGE_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
EDGE_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
EDGE_INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
EDGE_INLINE vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
EDGE_INLINE vf vf_copysign(vf size, vf sign) {
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
      _mm512_set1_epi32((int)0x80000000u), _mm512_castps_si512(sign), _mm512_castps_si512(size), 0xca));
}
EDGE_INLINE vf vf_from_int(vi a) { return _mm512_cvtepi32_ps((__m512i)a); }
EDGE_INLINE vi vf_to_int(vf a) { return (vi)_mm512_cvtps_epi32(a); }
EDGE_INLINE float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
EDGE_INLINE float vf_hmax(vf a) { return _mm512_reduce_max_ps(a); }
EDGE_INLINE float vf_hmin(vf a) { return _mm512_reduce_min_ps(a); }
EDGE_INLINE vi vi_load(const int32_t *p) { return (vi)_mm512_loadu_si512(p); }
EDGE_INLINE vi vi_splat(int32_t x) { return (vi)_mm512_set1_epi32(x); }
EDGE_INLINE vf vf_scale2(vf p, vi n) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32((__m512i)n, 23)));
}
EDGE_INLINE vf vf_from_int8(const int8_t *p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
EDGE_INLINE void vi_store_int8(int8_t *p, vi q) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((__m512i)q)); }

#elif defined(EDGE_ISA_AVX2) || defined(EDGE_ISA_AVXVNNI)
#include <immintrin.h>
typedef __m256 vf;
typedef int32_t vi __attribute__((vector_size(32), may_alias));
enum { VW = 8 };
EDGE_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
EDGE_INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
EDGE_INLINE vf vf_splat(float x) { return _mm256_set1_ps(x); }
EDGE_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
EDGE_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
EDGE_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
EDGE_INLINE vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
EDGE_INLINE vf vf_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
EDGE_INLINE vf vf_copysign(vf size, vf sign) {
  vf mask = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_and_ps(mask, sign), _mm256_andnot_ps(mask, size));
}
EDGE_INLINE vf vf_from_int(vi a) { return _mm256_cvtepi32_ps((__m256i)a); }
EDGE_INLINE vi vf_to_int(vf a) { return (vi)_mm256_cvtps_epi32(a); }
EDGE_INLINE float vf_sum(vf a) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
EDGE_INLINE float vf_hmax(vf a) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
EDGE_INLINE float vf_hmin(vf a) { return -vf_hmax(-a); }
EDGE_INLINE vi vi_load(const int32_t *p) { return (vi)_mm256_loadu_si256((const __m256i *)p); }
EDGE_INLINE vi vi_splat(int32_t x) { return (vi)_mm256_set1_epi32(x); }
EDGE_INLINE vf vf_scale2(vf p, vi n) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32((__m256i)n, 23)));
}
EDGE_INLINE vf vf_from_int8(const int8_t *p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
EDGE_INLINE void vi_store_int8(int8_t *p, vi q) {
  __m128i half = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)q), _mm256_extracti128_si256((__m256i)q, 1));
  _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(half, half));
}

#elif defined(EDGE_ISA_SCALAR)
typedef float vf;
typedef int32_t vi;
enum { VW = 1 };
EDGE_INLINE vf vf_load(const float *p) { return *p; }
EDGE_INLINE void vf_store(float *p, vf x) { *p = x; }
EDGE_INLINE vf vf_splat(float x) { return x; }
EDGE_INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
EDGE_INLINE vf vf_max(vf a, vf b) { return a > b ? a : b; }
EDGE_INLINE vf vf_min(vf a, vf b) { return a < b ? a : b; }
EDGE_INLINE vf vf_abs(vf a) { return fabsf(a); }
EDGE_INLINE vf vf_round(vf a) { return rintf(a); }
EDGE_INLINE vf vf_copysign(vf size, vf sign) { return copysignf(size, sign); }
EDGE_INLINE vf vf_from_int(vi a) { return (float)a; }
EDGE_INLINE vi vf_to_int(vf a) { return (vi)lrintf(a); }
EDGE_INLINE float vf_sum(vf a) { return a; }
EDGE_INLINE float vf_hmax(vf a) { return a; }
EDGE_INLINE float vf_hmin(vf a) { return a; }
EDGE_INLINE vi vi_load(const int32_t *p) { return *p; }
EDGE_INLINE vi vi_splat(int32_t x) { return x; }
EDGE_INLINE vi vi_max(vi a, vi b) { return a > b ? a : b; }
EDGE_INLINE int32_t vi_hmax(vi a) { return a; }
EDGE_INLINE vf vf_scale2(vf p, vi n) {
  union { float value; uint32_t bits; } word = {p};
  word.bits += (uint32_t)n << 23;
  return word.value;
}
EDGE_INLINE vf vf_from_int8(const int8_t *p) { return (float)*p; }
EDGE_INLINE void vi_store_int8(int8_t *p, vi q) { *p = (int8_t)q; }
#else
#error "define one EDGE_ISA_..."
#endif

/* The first `count` < VW lanes from or to memory; the other lanes are `fill` or stay unwritten. */
EDGE_INLINE vf vf_load_part(const float *p, int count, float fill) {
  float lanes[VW];
  for (int lane = 0; lane < VW; lane++) lanes[lane] = lane < count ? p[lane] : fill;
  return vf_load(lanes);
}
EDGE_INLINE void vf_store_part(float *p, vf x, int count) {
  float lanes[VW];
  vf_store(lanes, x);
  for (int lane = 0; lane < VW && lane < count; lane++) p[lane] = lanes[lane];
}
EDGE_INLINE vf vf_load_upto(const float *p, int count, float fill) {
  return count >= VW ? vf_load(p) : vf_load_part(p, count, fill);
}
EDGE_INLINE void vf_store_upto(float *p, vf x, int count) {
  if (count >= VW) vf_store(p, x);
  else vf_store_part(p, x, count);
}
EDGE_INLINE vf vf_clamp(vf x, float low, float high) { return vf_min(vf_max(x, vf_splat(low)), vf_splat(high)); }
