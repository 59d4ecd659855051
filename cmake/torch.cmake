# ats_core.torch's adapter. python/ats_core/_build.py builds the same with the same flags at first import, where
# PyTorch came after ats_core: change both together.
find_package(TorchHeaders 2.10 QUIET)
if(NOT TorchHeaders_FOUND)
  message(FATAL_ERROR "The PyTorch adapter needs PyTorch >= 2.10 in ${Python_SITEARCH}: pip install torch, "
                      "or configure with -DATS_BUILD_TORCH=OFF.")
endif()
message(STATUS "PyTorch ${TorchHeaders_VERSION}: building its adapter")

# An adapter must name PyTorch's libraries as needed; empty ones of those names serve the linker, so that the result is
# bound to no PyTorch version.
file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/torch_stub.c CONTENT "typedef int ats_empty;\n" @ONLY)
foreach(name IN ITEMS torch_cpu torch_cuda)
  add_library(ats_${name}_stub SHARED ${PROJECT_BINARY_DIR}/torch_stub.c)
  set_target_properties(ats_${name}_stub PROPERTIES OUTPUT_NAME ${name}
                                                    LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/torch_stub)
endforeach()

# The operations on CUDA are a library of their own, which is loaded only where PyTorch has CUDA; it needs nothing of
# CUDA to be built.
foreach(name IN ITEMS ats_torch ats_torch_cuda)
  add_library(${name} MODULE ${PROJECT_SOURCE_DIR}/bindings/torch/${name}.cc)
  target_compile_definitions(${name} PRIVATE TORCH_TARGET_VERSION=0x020a000000000000) # PyTorch 2.10's stable ABI
  target_compile_options(${name} PRIVATE -Wall -Wextra)
  target_include_directories(${name} SYSTEM PRIVATE ${TorchHeaders_INCLUDE_DIRS})
  target_link_options(${name} PRIVATE LINKER:--no-as-needed)
  target_link_libraries(${name} PRIVATE ats ats_torch_cpu_stub)
  set_target_properties(${name} PROPERTIES PREFIX "_" INSTALL_RPATH "$ORIGIN/../lib" BUILD_WITH_INSTALL_RPATH ON)
  if(SKBUILD)
    install(TARGETS ${name} LIBRARY DESTINATION ats_core/torch)
  endif()
endforeach()
target_link_libraries(ats_torch_cuda PRIVATE ats_torch_cuda_stub)
