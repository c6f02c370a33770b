/* All kernels for one kernel set, chosen by -DEDGE_ISA_<SET>. Included once by the generated model.c. */
#pragma once
#if defined(EDGE_ISA_AVX512VBMI)
#define EDGE_ISA_AVX512VNNI 1 /* the same with permutations of bytes */
#endif
#if defined(EDGE_ISA_HALF)
#define EDGE_ISA_BASE 1 /* int8 kernels of the base set; float linear layers are in half precision */
#endif
#include "edge_vector.h"
#if defined(EDGE_ISA_BASE)
#include "edge_tile_base.h"
#elif defined(EDGE_ISA_DOTPROD)
#include "edge_tile_dotprod.h"
#elif defined(EDGE_ISA_I8MM)
#include "edge_tile_i8mm.h"
#elif defined(EDGE_ISA_AVX512VNNI)
#include "edge_tile_avx512vnni.h"
#elif defined(EDGE_ISA_AVXVNNI)
#include "edge_tile_avxvnni.h"
#elif defined(EDGE_ISA_AVX2)
#include "edge_tile_avx2.h"
#else
#include "edge_tile_scalar.h"
#endif
#if defined(EDGE_BLOCKS) /* the model has block-sparse layers */
#if defined(EDGE_ISA_BASE)
#include "edge_blocks_base.h"
#elif defined(EDGE_ISA_DOTPROD)
#include "edge_blocks_dotprod.h"
#elif defined(EDGE_ISA_I8MM)
#include "edge_blocks_i8mm.h"
#else
#include "edge_blocks_gathered.h"
#endif
#endif
#if defined(EDGE_FOUR_BITS) /* it has layers of 4 bits */
#include "edge_four_bits.h"
#endif
#include "edge_gemm_int8.h"
#include "edge_quantize.h"
#include "edge_math.h"
#include "edge_gemm_float.h"
#if defined(EDGE_ISA_HALF)
#include "edge_gemm_half.h"
#endif
#include "edge_rows.h"
#include "edge_resident.h"
#include "edge_attention.h"
#include "edge_attention_cached.h"
#if defined(EDGE_INTEGER_ATTENTION)
#include "edge_softmax_integer.h"
#include "edge_attention_int8.h"
#endif
