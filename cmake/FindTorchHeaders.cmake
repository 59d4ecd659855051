# The headers of the PyTorch that the running Python would import, found by path: importing it takes seconds, and in
# pip's isolated builds it cannot be imported at all.
#   TorchHeaders_FOUND  TorchHeaders_VERSION  TorchHeaders_INCLUDE_DIRS
# ATS_TORCH_SITE may name the folder that PyTorch's lies in, where that Python would not find it by itself.
#   TorchHeaders_CUDA  the version of CUDA that it was built with, or empty
find_package(Python 3.10 COMPONENTS Interpreter QUIET)
foreach(site IN ITEMS "${ATS_TORCH_SITE}" "${Python_SITEARCH}" "${Python_SITELIB}")
  if(EXISTS "${site}/torch/version.py" AND EXISTS "${site}/torch/include/torch/csrc/stable/library.h")
    file(STRINGS "${site}/torch/version.py" TorchHeaders_VERSION REGEX "^__version__")
    string(REGEX MATCH "[0-9]+(\\.[0-9]+)+" TorchHeaders_VERSION "${TorchHeaders_VERSION}")
    file(STRINGS "${site}/torch/version.py" TorchHeaders_CUDA REGEX "^cuda(:[^=]*)? = '")
    string(REGEX MATCH "[0-9]+(\\.[0-9]+)+" TorchHeaders_CUDA "${TorchHeaders_CUDA}")
    set(TorchHeaders_INCLUDE_DIRS "${site}/torch/include" "${site}/torch/include/torch/csrc/api/include")
    break()
  endif()
endforeach()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TorchHeaders REQUIRED_VARS TorchHeaders_INCLUDE_DIRS
                                  VERSION_VAR TorchHeaders_VERSION)
