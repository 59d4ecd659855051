# ats_core._core: the NumPy edge.
find_package(Python 3.10 COMPONENTS Interpreter Development.Module)
if(NOT Python_Development.Module_FOUND)
  message(FATAL_ERROR "The NumPy extension needs Python >= 3.10 with its C headers "
                      "(Debian: apt-get install python3-dev), or configure with -DATS_BUILD_PYTHON=OFF.")
endif()
find_package(pybind11 CONFIG QUIET)
if(NOT pybind11_FOUND)
  message(FATAL_ERROR "The NumPy extension needs pybind11: pip install pybind11, then configure with "
                      "-Dpybind11_DIR=$(python -m pybind11 --cmakedir), or with -DATS_BUILD_PYTHON=OFF.")
endif()

pybind11_add_module(ats_python MODULE ${PROJECT_SOURCE_DIR}/bindings/python/module.cc)
target_link_libraries(ats_python PRIVATE ats)
target_compile_options(ats_python PRIVATE -Wall -Wextra)
set(architectures "")
if(ATS_BUILD_CUDA)
  list(JOIN CMAKE_CUDA_ARCHITECTURES " " architectures)
endif()
target_compile_definitions(ats_python PRIVATE "ATS_CUDA_ARCHITECTURES=\"${architectures}\"")
set_target_properties(ats_python PROPERTIES OUTPUT_NAME _core INSTALL_RPATH "$ORIGIN/lib")
if(SKBUILD)
  install(TARGETS ats_python LIBRARY DESTINATION ats_core)
endif()
