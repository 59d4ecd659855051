/* libats: attention sampling. The C API.
 *
 * Every operation is a plain function over strided views of memory that the caller owns:
 *
 *   ats_<op>_shape      fills shape, dtype and contiguous strides of the outputs (-1: size unknown yet); a gradient
 *                       has the shape of what it is the gradient of, so backward operations have none
 *   ats_<op>_workspace  bytes of scratch memory that ats_<op> wants; operations without one want none
 *   ats_<op>            checks every argument, then computes
 *
 * These return ATS_OK or a status; ats_last_error() then gives the calling thread's message, which begins with the
 * operation and the argument at fault, and stands until that thread's next error. Nothing is written before the shapes,
 * dtypes and values that can be checked without work have been checked.
 *
 * Inputs may have any strides (0 and negative too) but where contiguity is asked for; small outputs (all but patches and
 * d_image) are contiguous. Outputs overlap neither inputs nor each other nor themselves. Scratch memory is aligned to 8
 * bytes, needs no initial value, and serves one call at a time. Any number of threads may call at once. Calls expect the
 * default floating-point environment: round to nearest, subnormals kept.
 *
 * On a GPU: all tensors of a call are on the same one (rng may stay on the CPU). Work is queued on executor->stream (the
 * default stream where there is none) and the call returns before it is done; nothing is allocated, nothing waited for,
 * and CUDA graphs may record it. Memory beyond the tensors is never touched, whatever they hold. Values cannot be
 * checked without waiting, so that there
 *   - a row that sample or topk cannot draw from has indices -1, probabilities 0, threshold and log_mass NaN;
 *   - sample_backward passes over indices that are no cells;
 *   - locate places what is no cell at INT64_MIN, where patches hold only padding;
 *   - a row of attention that is not what the estimator takes, or a threshold that is not positive, makes the results of
 *     that row NaN. Weights are taken as they are.
 * Results are the same bits as on the CPU, but for horvitz_thompson, whose exponential is the machine's own.
 *
 * Letters: B batch, N samples, K cells of the attention map, C channels, D = 1..3 spatial axes, S scales.
 */
#ifndef ATS_ATS_H
#define ATS_ATS_H

#include <stddef.h>
#include <stdint.h>

#define ATS_VERSION_MAJOR 0
#define ATS_VERSION_MINOR 1
#define ATS_VERSION_PATCH 0

#define ATS_MAX_DIMS 8
#define ATS_MAX_SCALES 16

#if defined(_WIN32)
#define ATS_API
#else
#define ATS_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
#define ATS_NOEXCEPT noexcept
extern "C" {
#else
#define ATS_NOEXCEPT
#endif

typedef enum ats_status {
  ATS_OK = 0,
  ATS_INVALID_ARGUMENT = 1, /* a wrong shape, dtype, option or value */
  ATS_OUT_OF_MEMORY = 2,
  ATS_UNSUPPORTED = 3, /* right, but not in this build (a CUDA tensor in a CPU build) */
  ATS_INTERNAL = 4
} ats_status;

typedef enum ats_dtype {
  ATS_UINT8 = 0,
  ATS_INT16 = 1,
  ATS_UINT16 = 2,
  ATS_FLOAT16 = 3,
  ATS_BFLOAT16 = 4,
  ATS_FLOAT32 = 5,
  ATS_FLOAT64 = 6,
  ATS_INT64 = 7
} ats_dtype;

typedef enum ats_device { ATS_CPU = 0, ATS_CUDA = 1 } ats_device;

/* A strided view. `strides` count elements, not bytes; `data` is aligned to its dtype and may be NULL when the view
 * is empty or only its shape matters. */
typedef struct ats_tensor {
  void* data;
  int64_t shape[ATS_MAX_DIMS];
  int64_t strides[ATS_MAX_DIMS];
  int32_t ndim;
  int32_t dtype;        /* ats_dtype */
  int32_t device;       /* ats_device */
  int32_t device_index; /* which of several GPUs */
} ats_tensor;

/* How work is spread. parallel_for splits [begin, end) into ranges, of about `grain` or more, and calls `body` on each,
 * on any threads, and returns when all are done; `body` never throws. Results do not depend on how it splits.
 * A NULL executor, or one without parallel_for, runs on the calling thread. */
typedef void (*ats_body)(void* data, int64_t begin, int64_t end);
typedef struct ats_executor {
  void* context;
  void (*parallel_for)(void* context, int64_t begin, int64_t end, int64_t grain, ats_body body, void* data);
  void* stream; /* cudaStream_t, for tensors on a GPU */
} ats_executor;

ATS_API const char* ats_version(void) ATS_NOEXCEPT;
ATS_API const char* ats_last_error(void) ATS_NOEXCEPT;

/* The library's own thread pool, for callers that have none. It survives fork(). */
ATS_API const ats_executor* ats_thread_pool(void) ATS_NOEXCEPT;
ATS_API int ats_get_num_threads(void) ATS_NOEXCEPT;
ATS_API int ats_set_num_threads(int threads) ATS_NOEXCEPT; /* 0: one a core */

/* ---- sample ---------------------------------------------------------------------------------------------------
 * Draw N cells a row, one after the other, each with probability proportional to its weight among the cells left
 * (or among all, with replace).
 *
 *   attention      (B, *grid) float16|bfloat16|float32|float64, cells of a row contiguous. Weights: finite, >= 0,
 *                  any scale. With logits: log-weights, finite or -inf.
 *   rng            (2,) int64: seed, offset. Row b draws from stream (seed, offset + b), whatever the batch, so that
 *                  row b of a batch equals a batch of one at offset + b. The addition wraps around.
 *   indices        (B, N) int64: flat cells in the order drawn
 *   probabilities  (B, N): their weights over the row's total. float64 for a float64 input, float32 otherwise
 *   threshold      (B,), as probabilities: time at which the first cell not drawn would ring, in the exponential race
 *                  with a total rate of 1; inf when no cell is left, and with replace
 *   log_mass       (B,) float64: logarithm of the row's total weight (ats_sample_backward wants it)
 *
 * A row with a negative, NaN or infinite weight, or with fewer than N cells of positive weight (fewer than 1, with
 * replace), is an error that names row and cell. */
typedef struct ats_sample_options {
  int64_t n;
  int32_t replace;
  int32_t logits;
} ats_sample_options;

ATS_API int ats_sample_shape(const ats_tensor* attention, const ats_sample_options* options, ats_tensor* indices,
                             ats_tensor* probabilities, ats_tensor* threshold, ats_tensor* log_mass) ATS_NOEXCEPT;
ATS_API int ats_sample_workspace(const ats_tensor* attention, const ats_sample_options* options,
                                 size_t* bytes) ATS_NOEXCEPT;
ATS_API int ats_sample(const ats_tensor* attention, const ats_tensor* rng, const ats_sample_options* options,
                       const ats_tensor* indices, const ats_tensor* probabilities, const ats_tensor* threshold,
                       const ats_tensor* log_mass, void* workspace, const ats_executor* executor) ATS_NOEXCEPT;

/* The gradient of `probabilities` (of sample or topk) with respect to `attention`, times `grad` (B, N):
 * d_attention (B, *grid) has the dtype of attention. Exact for weights and for logits. */
ATS_API int ats_sample_backward(const ats_tensor* grad, const ats_tensor* attention, const ats_tensor* indices,
                                const ats_tensor* probabilities, const ats_tensor* log_mass, int32_t logits,
                                const ats_tensor* d_attention, const ats_executor* executor) ATS_NOEXCEPT;

/* ---- topk -----------------------------------------------------------------------------------------------------
 * The N largest cells a row, largest first, ties to the lower index; outputs as in ats_sample (options.replace must
 * be 0; threshold is inf). Zero weights and -inf logits rank last and may be taken; a row of them alone is an error. */
ATS_API int ats_topk_shape(const ats_tensor* attention, const ats_sample_options* options, ats_tensor* indices,
                           ats_tensor* probabilities, ats_tensor* threshold, ats_tensor* log_mass) ATS_NOEXCEPT;
ATS_API int ats_topk_workspace(const ats_tensor* attention, const ats_sample_options* options,
                               size_t* bytes) ATS_NOEXCEPT;
ATS_API int ats_topk(const ats_tensor* attention, const ats_sample_options* options, const ats_tensor* indices,
                     const ats_tensor* probabilities, const ats_tensor* threshold, const ats_tensor* log_mass,
                     void* workspace, const ats_executor* executor) ATS_NOEXCEPT;

/* ---- locate ---------------------------------------------------------------------------------------------------
 * Where the patch of a cell begins in the full-resolution image, per axis:
 *   scale = image / low,  step = (low - receptive_field) * scale / grid
 *   origin = round_half_even(receptive_field / 2 * scale + index * step + step / 2 - patch / 2)
 * indices (B, N) int64 flat cells -> origins (B, N, D) int64. */
typedef struct ats_locate_options {
  int32_t spatial; /* D */
  int64_t grid[3];
  int64_t low[3]; /* the image the attention network saw */
  int64_t image[3];
  int64_t patch[3];
  int64_t receptive_field[3]; /* >= 0 and < low */
} ats_locate_options;

ATS_API int ats_locate_shape(const ats_tensor* indices, const ats_locate_options* options,
                             ats_tensor* origins) ATS_NOEXCEPT;
ATS_API int ats_locate(const ats_tensor* indices, const ats_locate_options* options, const ats_tensor* origins,
                       const ats_executor* executor) ATS_NOEXCEPT;

/* ---- extract_patches ------------------------------------------------------------------------------------------
 *   image    (B, *spatial, C), any strides (a channels-first tensor is a permuted view); uint8, int16, uint16,
 *            float16, bfloat16, float32 or float64
 *   origins  (B, N, D) int64, any value: patches may lie anywhere
 *   patches  (B, N, [S,] *patch, C), any strides; image's dtype or any floating dtype. The axis S is there exactly
 *            when n_scales > 0.
 *
 * Scale s covers s * patch pixels per axis from origin - floor((s - 1) * patch / 2), and averages s^D pixels (at most
 * 2^20) into one. Pixels outside the image are `fill` (constant), the nearest pixel (edge) or mirrored without
 * repeating the border (reflect). Then, per channel, (x - mean[c]) / std[c]; the fill is normalised as a pixel would
 * be. Integers are rounded half to even and saturate. */
typedef enum ats_padding { ATS_PAD_CONSTANT = 0, ATS_PAD_EDGE = 1, ATS_PAD_REFLECT = 2 } ats_padding;

/* "constant", "edge", "reflect" */
ATS_API int ats_padding_by_name(const char* name, int32_t* padding) ATS_NOEXCEPT;

typedef struct ats_patches_options {
  int32_t spatial; /* D */
  int64_t patch[3];
  int32_t n_scales; /* 0: scale 1 and no axis S */
  int64_t scales[ATS_MAX_SCALES];
  int32_t padding; /* ats_padding */
  int32_t dtype;   /* ats_dtype of the patches; backward takes it from grad */
  double fill;
  const double* mean; /* C values, or NULL */
  const double* std;  /* C values, none 0, or NULL */
  int64_t n_mean;     /* how many values mean and std point to */
  int64_t n_std;
} ats_patches_options;

ATS_API int ats_extract_patches_shape(const ats_tensor* image, const ats_tensor* origins,
                                      const ats_patches_options* options, ats_tensor* patches) ATS_NOEXCEPT;
ATS_API int ats_extract_patches(const ats_tensor* image, const ats_tensor* origins, const ats_patches_options* options,
                                const ats_tensor* patches, const ats_executor* executor) ATS_NOEXCEPT;

/* grad (B, N, [S,] *patch, C) -> d_image (B, *spatial, C), any strides, overwritten. Both floating. Every pixel's
 * contributions are added in the order of the patches, in float32 or wider. */
ATS_API int ats_extract_patches_backward_workspace(const ats_tensor* d_image, size_t* bytes) ATS_NOEXCEPT;
ATS_API int ats_extract_patches_backward(const ats_tensor* grad, const ats_tensor* origins,
                                         const ats_patches_options* options, const ats_tensor* d_image, void* workspace,
                                         const ats_executor* executor) ATS_NOEXCEPT;

/* ---- expectation ----------------------------------------------------------------------------------------------
 * Estimate sum_k a_k f_k from the sampled cells: sum_i c_i f_i, with c from one of the estimators below.
 *
 *   features   (B, N, ...) float16|bfloat16|float32|float64, trailing axes contiguous
 *   attention  (B, N) float32|float64: what ats_sample gave as probabilities, in the order drawn
 *   threshold  (B,) as attention; only horvitz_thompson reads it, else it may be NULL
 *   weights    (N,) as attention, sum 1; only des_raj takes it, else NULL. NULL: 1/N each
 *   expected   (B, ...) as features
 *
 * backward: grad (B, ...) -> d_features (as features), d_attention (as attention), d_attention_i = sum_j M_ij <f_j, grad>.
 * M is the unbiased score-function gradient with the baselines of docs/estimators.md; it is the gradient at the
 * logits of a softmax (a shift of all of d_attention dies there). Values beyond the dtype's range are clamped to it. */
typedef enum ats_estimator {
  ATS_IID = 0,     /* sampling with replacement */
  ATS_DES_RAJ = 1, /* Des Raj 1956; the attention sampling paper's */
  ATS_MURTHY = 2,  /* Murthy 1957; Kool et al. 2020 */
  ATS_HORVITZ_THOMPSON = 3,
  ATS_NORMALIZED = 4 /* attention over its sum: for topk */
} ats_estimator;

/* "iid", "des_raj", "murthy", "horvitz_thompson", "normalized" */
ATS_API int ats_estimator_by_name(const char* name, int32_t* estimator) ATS_NOEXCEPT;

ATS_API int ats_expectation_shape(const ats_tensor* features, const ats_tensor* attention, const ats_tensor* threshold,
                                  const ats_tensor* weights, int32_t estimator, ats_tensor* expected) ATS_NOEXCEPT;
ATS_API int ats_expectation_workspace(const ats_tensor* attention, size_t* bytes) ATS_NOEXCEPT;
ATS_API int ats_expectation(const ats_tensor* features, const ats_tensor* attention, const ats_tensor* threshold,
                            const ats_tensor* weights, int32_t estimator, const ats_tensor* expected, void* workspace,
                            const ats_executor* executor) ATS_NOEXCEPT;

ATS_API int ats_expectation_backward_workspace(const ats_tensor* attention, size_t* bytes) ATS_NOEXCEPT;
ATS_API int ats_expectation_backward(const ats_tensor* grad, const ats_tensor* features, const ats_tensor* attention,
                                     const ats_tensor* threshold, const ats_tensor* weights, int32_t estimator,
                                     const ats_tensor* d_features, const ats_tensor* d_attention, void* workspace,
                                     const ats_executor* executor) ATS_NOEXCEPT;

/* The arrays themselves: c (B, N) and M (B, N, N), as attention. */
ATS_API int ats_estimator_arrays_shape(const ats_tensor* attention, const ats_tensor* threshold,
                                       const ats_tensor* weights, int32_t estimator, ats_tensor* c,
                                       ats_tensor* m) ATS_NOEXCEPT;
ATS_API int ats_estimator_arrays_workspace(const ats_tensor* attention, size_t* bytes) ATS_NOEXCEPT;
ATS_API int ats_estimator_arrays(const ats_tensor* attention, const ats_tensor* threshold, const ats_tensor* weights,
                                 int32_t estimator, const ats_tensor* c, const ats_tensor* m, void* workspace,
                                 const ats_executor* executor) ATS_NOEXCEPT;

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* ATS_ATS_H */
