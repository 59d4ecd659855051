# The library. A CUDA build will add libats/src/*.cu here.
include(GNUInstallDirs)
find_package(Threads REQUIRED)
file(GLOB ATS_SOURCES CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/libats/src/*.cc)
set(ATS_EXPORTS ${PROJECT_SOURCE_DIR}/libats/src/ats.map)

add_library(ats SHARED ${ATS_SOURCES})
add_library(ats::ats ALIAS ats)
target_include_directories(ats PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/libats/include>
                                      $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_link_libraries(ats PRIVATE Threads::Threads)
# No fused multiply-adds, so that the same cells are drawn on every machine. The other two change no value: they say that
# nobody reads errno or the floating-point flags, so that comparisons and calls to libm may be vectorised.
set(ATS_FLOATING_POINT -ffp-contract=off -fno-trapping-math -fno-math-errno)
target_compile_options(ats PRIVATE ${ATS_FLOATING_POINT} -Wall -Wextra -Wno-psabi)
# Its pool's threads outlive a dlclose, so the code must too.
target_link_options(ats PRIVATE LINKER:-z,nodelete)
target_link_options(ats PRIVATE LINKER:--version-script=${ATS_EXPORTS})
if(NOT ATS_SANITIZE) # sanitizers leave symbols to be found at run time
  target_link_options(ats PRIVATE LINKER:--no-undefined)
endif()
set_target_properties(ats PROPERTIES LINK_DEPENDS ${ATS_EXPORTS})

# A wheel holds no symbolic links, so there the file itself is libats.so.
if(NOT SKBUILD)
  if(PROJECT_VERSION_MAJOR EQUAL 0) # below 1.0 every minor version may change the ABI
    set(ATS_SOVERSION 0.${PROJECT_VERSION_MINOR})
  else()
    set(ATS_SOVERSION ${PROJECT_VERSION_MAJOR})
  endif()
  set_target_properties(ats PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${ATS_SOVERSION})
endif()
