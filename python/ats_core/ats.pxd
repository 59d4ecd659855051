# The C API (ats/ats.h, where everything is explained) for Cython:
#
#     from ats_core cimport ats
#
# Compile with ats_core.get_include(), link "ats" from ats_core.get_library_dir(), which is the run-time library path
# too. No function needs the GIL.
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t

cdef extern from "ats/ats.h" nogil:
    enum:
        ATS_VERSION_MAJOR
        ATS_VERSION_MINOR
        ATS_VERSION_PATCH
        ATS_MAX_DIMS
        ATS_MAX_SCALES

    ctypedef enum ats_status:
        ATS_OK
        ATS_INVALID_ARGUMENT
        ATS_OUT_OF_MEMORY
        ATS_UNSUPPORTED
        ATS_INTERNAL

    ctypedef enum ats_dtype:
        ATS_UINT8
        ATS_INT16
        ATS_UINT16
        ATS_FLOAT16
        ATS_BFLOAT16
        ATS_FLOAT32
        ATS_FLOAT64
        ATS_INT64

    ctypedef enum ats_device:
        ATS_CPU
        ATS_CUDA

    ctypedef struct ats_tensor:
        void* data
        int64_t shape[8]
        int64_t strides[8]
        int32_t ndim
        int32_t dtype
        int32_t device
        int32_t device_index

    ctypedef void (*ats_body)(void* data, int64_t begin, int64_t end) noexcept

    ctypedef struct ats_executor:
        void* context
        void (*parallel_for)(void* context, int64_t begin, int64_t end, int64_t grain, ats_body body,
                             void* data) noexcept
        void* stream

    const char* ats_version() noexcept
    const char* ats_last_error() noexcept

    const ats_executor* ats_thread_pool() noexcept
    int ats_get_num_threads() noexcept
    int ats_set_num_threads(int threads) noexcept

    ctypedef struct ats_sample_options:
        int64_t n
        int32_t replace
        int32_t logits

    int ats_sample_shape(const ats_tensor* attention, const ats_sample_options* options, ats_tensor* indices,
                         ats_tensor* probabilities, ats_tensor* threshold, ats_tensor* log_mass) noexcept
    int ats_sample_workspace(const ats_tensor* attention, const ats_sample_options* options, size_t* bytes) noexcept
    int ats_sample(const ats_tensor* attention, const ats_tensor* rng, const ats_sample_options* options,
                   const ats_tensor* indices, const ats_tensor* probabilities, const ats_tensor* threshold,
                   const ats_tensor* log_mass, void* workspace, const ats_executor* executor) noexcept
    int ats_sample_backward(const ats_tensor* grad, const ats_tensor* attention, const ats_tensor* indices,
                            const ats_tensor* probabilities, const ats_tensor* log_mass, int32_t logits,
                            const ats_tensor* d_attention, const ats_executor* executor) noexcept

    int ats_topk_shape(const ats_tensor* attention, const ats_sample_options* options, ats_tensor* indices,
                       ats_tensor* probabilities, ats_tensor* threshold, ats_tensor* log_mass) noexcept
    int ats_topk_workspace(const ats_tensor* attention, const ats_sample_options* options, size_t* bytes) noexcept
    int ats_topk(const ats_tensor* attention, const ats_sample_options* options, const ats_tensor* indices,
                 const ats_tensor* probabilities, const ats_tensor* threshold, const ats_tensor* log_mass,
                 void* workspace, const ats_executor* executor) noexcept

    ctypedef struct ats_locate_options:
        int32_t spatial
        int64_t grid[3]
        int64_t low[3]
        int64_t image[3]
        int64_t patch[3]
        int64_t receptive_field[3]

    int ats_locate_shape(const ats_tensor* indices, const ats_locate_options* options, ats_tensor* origins) noexcept
    int ats_locate(const ats_tensor* indices, const ats_locate_options* options, const ats_tensor* origins,
                   const ats_executor* executor) noexcept

    ctypedef enum ats_padding:
        ATS_PAD_CONSTANT
        ATS_PAD_EDGE
        ATS_PAD_REFLECT

    int ats_padding_by_name(const char* name, int32_t* padding) noexcept

    ctypedef struct ats_patches_options:
        int32_t spatial
        int64_t patch[3]
        int32_t n_scales
        int64_t scales[16]
        int32_t padding
        int32_t dtype
        double fill
        const double* mean
        const double* std
        int64_t n_mean
        int64_t n_std

    int ats_extract_patches_shape(const ats_tensor* image, const ats_tensor* origins,
                                  const ats_patches_options* options, ats_tensor* patches) noexcept
    int ats_extract_patches(const ats_tensor* image, const ats_tensor* origins, const ats_patches_options* options,
                            const ats_tensor* patches, const ats_executor* executor) noexcept
    int ats_extract_patches_backward_workspace(const ats_tensor* d_image, size_t* bytes) noexcept
    int ats_extract_patches_backward(const ats_tensor* grad, const ats_tensor* origins,
                                     const ats_patches_options* options, const ats_tensor* d_image, void* workspace,
                                     const ats_executor* executor) noexcept

    ctypedef enum ats_estimator:
        ATS_IID
        ATS_DES_RAJ
        ATS_MURTHY
        ATS_HORVITZ_THOMPSON
        ATS_NORMALIZED

    int ats_estimator_by_name(const char* name, int32_t* estimator) noexcept
    int ats_expectation_shape(const ats_tensor* features, const ats_tensor* attention, const ats_tensor* threshold,
                              const ats_tensor* weights, int32_t estimator, ats_tensor* expected) noexcept
    int ats_expectation_workspace(const ats_tensor* attention, size_t* bytes) noexcept
    int ats_expectation(const ats_tensor* features, const ats_tensor* attention, const ats_tensor* threshold,
                        const ats_tensor* weights, int32_t estimator, const ats_tensor* expected, void* workspace,
                        const ats_executor* executor) noexcept
    int ats_expectation_backward_workspace(const ats_tensor* attention, size_t* bytes) noexcept
    int ats_expectation_backward(const ats_tensor* grad, const ats_tensor* features, const ats_tensor* attention,
                                 const ats_tensor* threshold, const ats_tensor* weights, int32_t estimator,
                                 const ats_tensor* d_features, const ats_tensor* d_attention, void* workspace,
                                 const ats_executor* executor) noexcept
    int ats_estimator_arrays_shape(const ats_tensor* attention, const ats_tensor* threshold,
                                   const ats_tensor* weights, int32_t estimator, ats_tensor* c,
                                   ats_tensor* m) noexcept
    int ats_estimator_arrays_workspace(const ats_tensor* attention, size_t* bytes) noexcept
    int ats_estimator_arrays(const ats_tensor* attention, const ats_tensor* threshold, const ats_tensor* weights,
                             int32_t estimator, const ats_tensor* c, const ats_tensor* m, void* workspace,
                             const ats_executor* executor) noexcept
