# The library: ats. What it is made of but for CUDA is ats_objects, which the tests link with kernels compiled for the
# CPU (cmake/tests.cmake).
include(GNUInstallDirs)
find_package(Threads REQUIRED)
set(ATS_SOURCE_DIR ${PROJECT_SOURCE_DIR}/libats/src)
file(GLOB ATS_SOURCES CONFIGURE_DEPENDS ${ATS_SOURCE_DIR}/*.cc)
file(GLOB ATS_CUDA_SOURCES CONFIGURE_DEPENDS ${ATS_SOURCE_DIR}/*.cu)
list(REMOVE_ITEM ATS_SOURCES ${ATS_SOURCE_DIR}/no_cuda.cc)
set(ATS_EXPORTS ${ATS_SOURCE_DIR}/ats.map)

# No fused multiply-adds, so that the same cells are drawn on every machine. The other two change no value: they say that
# nobody reads errno or the floating-point flags, so that comparisons and calls to libm may be vectorised.
set(ATS_FLOATING_POINT -ffp-contract=off -fno-trapping-math -fno-math-errno)
add_library(ats_objects OBJECT ${ATS_SOURCES})
set_target_properties(ats_objects PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_include_directories(ats_objects PRIVATE ${PROJECT_SOURCE_DIR}/libats/include)
target_compile_options(ats_objects PRIVATE ${ATS_FLOATING_POINT} -Wall -Wextra -Wno-psabi)

add_library(ats SHARED $<TARGET_OBJECTS:ats_objects>)
add_library(ats::ats ALIAS ats)
if(ATS_BUILD_CUDA)
  include(cmake/cuda.cmake)
else()
  target_sources(ats PRIVATE ${ATS_SOURCE_DIR}/no_cuda.cc)
endif()
target_include_directories(ats PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/libats/include>
                                      $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_link_libraries(ats PRIVATE Threads::Threads)
# Its pool's threads outlive a dlclose, so the code must too.
target_link_options(ats PRIVATE LINKER:-z,nodelete)
target_link_options(ats PRIVATE LINKER:--version-script=${ATS_EXPORTS})
if(NOT ATS_SANITIZE) # sanitizers leave symbols to be found at run time
  target_link_options(ats PRIVATE LINKER:--no-undefined)
endif()
set_target_properties(ats PROPERTIES LINK_DEPENDS ${ATS_EXPORTS} LINKER_LANGUAGE CXX)

# A wheel holds no symbolic links, so there the file itself is libats.so.
if(NOT SKBUILD)
  if(PROJECT_VERSION_MAJOR EQUAL 0) # below 1.0 every minor version may change the ABI
    set(ATS_SOVERSION 0.${PROJECT_VERSION_MINOR})
  else()
    set(ATS_SOVERSION ${PROJECT_VERSION_MAJOR})
  endif()
  set_target_properties(ats PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${ATS_SOVERSION})
endif()
