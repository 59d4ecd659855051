# The headers of the TensorFlow that the running Python would import, found by path: importing it takes seconds, and in
# pip's isolated builds it cannot be imported at all.
#   TensorFlowHeaders_FOUND  TensorFlowHeaders_VERSION  TensorFlowHeaders_INCLUDE_DIR  TensorFlowHeaders_LIBRARY
#   TensorFlowHeaders_CUDA  whether it was built with CUDA
find_package(Python 3.10 COMPONENTS Interpreter QUIET)
foreach(site IN ITEMS "${Python_SITEARCH}" "${Python_SITELIB}")
  # tensorflow, tensorflow_cpu, ...: the distributions have many names, and all give the package tensorflow
  file(GLOB distributions "${site}/tensorflow-[0-9]*.dist-info" "${site}/tensorflow_*-[0-9]*.dist-info")
  if(distributions AND EXISTS "${site}/tensorflow/include/tensorflow/core/framework/op_kernel.h")
    foreach(distribution IN LISTS distributions)
      if(distribution MATCHES "/tensorflow(_cpu|_gpu|_intel|_rocm|_cpu_aws)?-([0-9][^-/]*)\\.dist-info$")
        set(TensorFlowHeaders_VERSION "${CMAKE_MATCH_2}")
      endif()
    endforeach()
    set(TensorFlowHeaders_CUDA OFF)
    if(EXISTS "${site}/tensorflow/python/platform/build_info.py")
      file(STRINGS "${site}/tensorflow/python/platform/build_info.py" built_with_cuda REGEX "'is_cuda_build', True")
      if(built_with_cuda)
        set(TensorFlowHeaders_CUDA ON)
      endif()
    endif()
    set(TensorFlowHeaders_INCLUDE_DIR "${site}/tensorflow/include")
    set(TensorFlowHeaders_LIBRARY "${site}/tensorflow/libtensorflow_framework.so.2")
    break()
  endif()
endforeach()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorFlowHeaders REQUIRED_VARS TensorFlowHeaders_INCLUDE_DIR TensorFlowHeaders_LIBRARY
                                  TensorFlowHeaders_VERSION VERSION_VAR TensorFlowHeaders_VERSION)
