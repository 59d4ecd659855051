# What scikit-build-core puts into the package ats_core, next to its Python files: the library, its headers, and the
# sources of the frameworks' adapters (ats_core/_build.py compiles them for a framework that is installed later).
install(TARGETS ats LIBRARY DESTINATION ats_core/lib)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/libats/include/ats DESTINATION ats_core/include)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/bindings/torch ${PROJECT_SOURCE_DIR}/bindings/tensorflow
        DESTINATION ats_core/_src FILES_MATCHING PATTERN "*.cc" PATTERN "*.h")
