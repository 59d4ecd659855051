# ats_core.torch's adapter. python/ats_core/_build.py builds the same with the same flags at first import, where
# PyTorch came after ats_core: change both together.
find_package(TorchHeaders 2.10 QUIET)
if(NOT TorchHeaders_FOUND)
  message(FATAL_ERROR "The PyTorch adapter needs PyTorch >= 2.10 in ${Python_SITEARCH}: pip install torch, "
                      "or configure with -DATS_BUILD_TORCH=OFF.")
endif()
message(STATUS "PyTorch ${TorchHeaders_VERSION}: building its adapter")

# The adapter must name libtorch_cpu.so as needed; an empty library of that name serves the linker, so the result is
# bound to no PyTorch version.
file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/torch_stub.c CONTENT "typedef int ats_empty;\n" @ONLY)
add_library(ats_torch_stub SHARED ${PROJECT_BINARY_DIR}/torch_stub.c)
set_target_properties(ats_torch_stub PROPERTIES OUTPUT_NAME torch_cpu
                                                LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/torch_stub)

file(GLOB ATS_TORCH_SOURCES CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/bindings/torch/*.cc)
add_library(ats_torch MODULE ${ATS_TORCH_SOURCES})
target_compile_definitions(ats_torch PRIVATE TORCH_TARGET_VERSION=0x020a000000000000) # PyTorch 2.10's stable ABI
target_compile_options(ats_torch PRIVATE -Wall -Wextra)
target_include_directories(ats_torch SYSTEM PRIVATE ${TorchHeaders_INCLUDE_DIRS})
target_link_options(ats_torch PRIVATE LINKER:--no-as-needed)
target_link_libraries(ats_torch PRIVATE ats ats_torch_stub)
set_target_properties(ats_torch PROPERTIES PREFIX "_" INSTALL_RPATH "$ORIGIN/../lib" BUILD_WITH_INSTALL_RPATH ON)
if(SKBUILD)
  install(TARGETS ats_torch LIBRARY DESTINATION ats_core/torch)
endif()
