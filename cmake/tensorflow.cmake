# ats_core.tensorflow's adapter. python/ats_core/_build.py builds the same with the same flags at first import, where
# TensorFlow came, or changed, after ats_core: change both together.
find_package(TensorFlowHeaders 2.18 QUIET)
if(NOT TensorFlowHeaders_FOUND)
  message(FATAL_ERROR "The TensorFlow adapter needs TensorFlow >= 2.18 in ${Python_SITEARCH}: pip install tensorflow, "
                      "or configure with -DATS_BUILD_TENSORFLOW=OFF.")
endif()
message(STATUS "TensorFlow ${TensorFlowHeaders_VERSION}: building its adapter")

file(GLOB ATS_TENSORFLOW_SOURCES CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/bindings/tensorflow/*.cc)
add_library(ats_tensorflow MODULE ${ATS_TENSORFLOW_SOURCES})
# What tf.sysconfig.get_compile_flags() says for every x86-64 wheel from 2.18 on.
target_compile_definitions(ats_tensorflow PRIVATE _GLIBCXX_USE_CXX11_ABI=1 EIGEN_MAX_ALIGN_BYTES=64)
# Deprecated: what the newest TensorFlow would have us call by a name that 2.18 does not know.
target_compile_options(ats_tensorflow PRIVATE -Wall -Wextra -Wno-deprecated-declarations)
target_include_directories(ats_tensorflow SYSTEM PRIVATE ${TensorFlowHeaders_INCLUDE_DIR})
target_link_libraries(ats_tensorflow PRIVATE ats ${TensorFlowHeaders_LIBRARY})
# Unlike PyTorch's, TensorFlow's C++ interface is that of one version: the adapter's name says which.
set_target_properties(ats_tensorflow PROPERTIES PREFIX "_" OUTPUT_NAME "ats_tensorflow_${TensorFlowHeaders_VERSION}"
                                                INSTALL_RPATH "$ORIGIN/../lib" BUILD_WITH_INSTALL_RPATH ON)
if(SKBUILD)
  install(TARGETS ats_tensorflow LIBRARY DESTINATION ats_core/tensorflow)
endif()
