# cmake --install of the library alone: headers, library, find_package(ats), pkg-config.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS ats EXPORT atsTargets)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/libats/include/ats DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

set(ATS_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/ats)
install(EXPORT atsTargets NAMESPACE ats:: DESTINATION ${ATS_CMAKE_DIR})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/atsConfig.cmake.in ${PROJECT_BINARY_DIR}/atsConfig.cmake
                              INSTALL_DESTINATION ${ATS_CMAKE_DIR})
if(PROJECT_VERSION_MAJOR EQUAL 0)
  set(ATS_COMPATIBILITY SameMinorVersion)
else()
  set(ATS_COMPATIBILITY SameMajorVersion)
endif()
write_basic_package_version_file(${PROJECT_BINARY_DIR}/atsConfigVersion.cmake COMPATIBILITY ${ATS_COMPATIBILITY})
install(FILES ${PROJECT_BINARY_DIR}/atsConfig.cmake ${PROJECT_BINARY_DIR}/atsConfigVersion.cmake
        DESTINATION ${ATS_CMAKE_DIR})

# Paths in ats.pc are relative to itself, so that an installed tree may be moved.
file(RELATIVE_PATH ATS_PC_PREFIX ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
configure_file(${CMAKE_CURRENT_LIST_DIR}/ats.pc.in ${PROJECT_BINARY_DIR}/ats.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/ats.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
