# The kernels. -fmad=false: no fused multiply-adds, as on the CPU, so that both give the same bits.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "ATS_BUILD_CUDA needs nvcc, of CUDA 12 or newer: install the CUDA toolkit and put its bin folder on "
                      "PATH (or set CUDACXX), or configure with -DATS_BUILD_CUDA=OFF.")
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS}) # those of these that this nvcc knows
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE ATS_KNOWN_ARCHITECTURES)
  foreach(architecture IN ITEMS 75 80 90 100)
    if(ATS_KNOWN_ARCHITECTURES MATCHES "compute_${architecture}[^0-9]")
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${architecture})
    endif()
  endforeach()
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static) # so that the library loads where there is no CUDA
enable_language(CUDA)

add_library(ats_kernels OBJECT ${ATS_CUDA_SOURCES})
set_target_properties(ats_kernels PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON
                                             CUDA_VISIBILITY_PRESET hidden)
target_include_directories(ats_kernels PRIVATE ${PROJECT_SOURCE_DIR}/libats/include)
target_compile_options(ats_kernels PRIVATE -fmad=false --expt-relaxed-constexpr -Xcompiler=-ffp-contract=off
                                           $<$<BOOL:${ATS_CUDA_VERBOSE}>:-Xptxas=-v>)
message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION}: building kernels for ${CMAKE_CUDA_ARCHITECTURES}")
target_sources(ats PRIVATE $<TARGET_OBJECTS:ats_kernels>)
find_package(CUDAToolkit REQUIRED)
target_link_libraries(ats PRIVATE CUDA::cudart_static)
