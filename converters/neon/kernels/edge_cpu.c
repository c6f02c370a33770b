/* Whether this CPU can run the kernel set; compiled without the kernel set's flags, so that it runs everywhere. */
#include "edge_model.h"

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

const char *edge_model_cpu(void) {
#if defined(EDGE_ISA_DOTPROD)
  enum { EDGE_HWCAP_ASIMDDP = 1 << 20 };
  if (!(getauxval(AT_HWCAP) & EDGE_HWCAP_ASIMDDP)) return "this CPU has no dot product instructions (asimddp)";
#elif defined(EDGE_ISA_AVX2)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return "this CPU has no AVX2 with FMA";
#elif defined(EDGE_ISA_AVX512VNNI)
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512vnni"))
    return "this CPU has no AVX-512 with VNNI";
#endif
  return NULL;
}
