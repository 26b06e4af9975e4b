# `cpack -G DEB`: libnearfile0, libnearfile-dev and nearfile, the tool. Configure with -DCMAKE_INSTALL_PREFIX=/usr for Debian's multiarch
# directories; `cpack -G TGZ` makes one archive for each component.

if(NOT CPACK_PACKAGE_CONTACT)
  set(CPACK_PACKAGE_CONTACT "nearfile maintainers")
endif()
set(CPACK_PACKAGE_VENDOR nearfile)
set(CPACK_PACKAGE_FILE_NAME "nearfile-${PROJECT_VERSION}-${rust_target}")
set(CPACK_VERBATIM_VARIABLES ON)
set(CPACK_STRIP_FILES ON)
set(CPACK_ARCHIVE_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_ALL runtime development)
if(NEARFILE_TOOL)
  list(APPEND CPACK_COMPONENTS_ALL tool)
endif()
# A summary is one short line: what stands before the colon.
string(REGEX REPLACE ":.*" "" CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_COMPONENT_RUNTIME_DESCRIPTION "${PROJECT_DESCRIPTION}.\nThis package has the shared library.")
set(CPACK_COMPONENT_DEVELOPMENT_DESCRIPTION
  "${PROJECT_DESCRIPTION}.\nThis package has the headers, the static library, and the files for CMake and pkg-config.")
set(CPACK_COMPONENT_DEVELOPMENT_DEPENDS runtime)
set(CPACK_COMPONENT_TOOL_DESCRIPTION
  "${PROJECT_DESCRIPTION}.\nThis package has the tool that shows and looks after cache directories.")

set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_NAME libnearfile${PROJECT_VERSION_MAJOR})
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libnearfile-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
# What the headers below nearfile/ are adapters for.
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SUGGESTS
  "libcurl4-openssl-dev, libzip-dev, libsqlite3-dev, libarchive-dev, libhdf5-dev")
set(CPACK_DEBIAN_TOOL_PACKAGE_NAME nearfile)
set(CPACK_DEBIAN_TOOL_PACKAGE_SECTION utils)
# The library is inside it; curl reads URLs for `nearfile warm`.
set(CPACK_DEBIAN_TOOL_PACKAGE_RECOMMENDS curl)
# The headers and the library of one release belong together: depends on libnearfile0 (= version).
set(CPACK_DEBIAN_ENABLE_COMPONENT_DEPENDS ON)
find_program(NEARFILE_SHLIBDEPS dpkg-shlibdeps)
mark_as_advanced(NEARFILE_SHLIBDEPS)
if(NEARFILE_SHLIBDEPS)
  set(CPACK_DEBIAN_RUNTIME_PACKAGE_SHLIBDEPS ON)
  set(CPACK_DEBIAN_TOOL_PACKAGE_SHLIBDEPS ON)
endif()
# Programs linked to this version need at least this version.
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS_POLICY ">=")
include(CPack)
