/* Whether this CPU can run the kernel set; compiled without the kernel set's flags, so that it runs everywhere. */
#include "edge_model.h"

#if defined(EDGE_ISA_I8MM)
#include <sys/auxv.h>

const char *edge_model_cpu(void) {
  enum { ASIMDDP = 1 << 20, I8MM = 1 << 13 };
  if (!(getauxval(AT_HWCAP) & ASIMDDP)) return "this CPU has no dot product instructions (asimddp)";
  return getauxval(AT_HWCAP2) & I8MM ? NULL : "this CPU has no int8 matrix multiply instructions (i8mm)";
}

#elif defined(EDGE_ISA_DOTPROD)
#include <sys/auxv.h>

const char *edge_model_cpu(void) {
  enum { ASIMDDP = 1 << 20 };
  return getauxval(AT_HWCAP) & ASIMDDP ? NULL : "this CPU has no dot product instructions (asimddp)";
}

#elif defined(EDGE_ISA_HALF)
#include <sys/auxv.h>

const char *edge_model_cpu(void) {
  enum { ASIMDHP = 1 << 10 };
  return getauxval(AT_HWCAP) & ASIMDHP ? NULL : "this CPU has no half-precision arithmetic (asimdhp)";
}

#elif defined(EDGE_ISA_AVX2) || defined(EDGE_ISA_AVXVNNI) || defined(EDGE_ISA_AVX512VNNI) || \
    defined(EDGE_ISA_AVX512VBMI)
#include <cpuid.h>

/* Features by CPUID, and whether the system saves their registers by XGETBV (not __builtin_cpu_supports, which answers
 * no under zig). */
const char *edge_model_cpu(void) {
  unsigned a, b, c, d, state, high;
  enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX2 = 1 << 5, AVX_STATE = 0x6, AVX512_STATE = 0xe6, VNNI = 1 << 11 };
  const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
  const char *no_avx2 = "this CPU has no AVX2 with FMA", *no_vnni = "this CPU has no AVX-512 with VNNI";
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & FMA) || !(c & OSXSAVE)) return no_avx2;
  __asm__ volatile("xgetbv" : "=a"(state), "=d"(high) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & AVX2) || (state & AVX_STATE) != AVX_STATE) return no_avx2;
#if defined(EDGE_ISA_AVX512VNNI) || defined(EDGE_ISA_AVX512VBMI)
  if ((b & avx512) != avx512 || !(c & VNNI) || (state & AVX512_STATE) != AVX512_STATE) return no_vnni;
#elif defined(EDGE_ISA_AVXVNNI)
  enum { AVX_VNNI = 1 << 4 };
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & AVX_VNNI)) return "this CPU has no AVX-VNNI";
#endif
#if defined(EDGE_ISA_AVX512VBMI)
  enum { VBMI = 1 << 1 };
  if (!(c & VBMI)) return "this CPU has no AVX-512 with VBMI";
#endif
  (void)avx512;
  (void)no_vnni;
  return NULL;
}

#else
const char *edge_model_cpu(void) { return NULL; }
#endif
