# examples/*.c: those whose libraries are absent are left out, with a message that tells which.

find_package(Threads QUIET)
find_package(PkgConfig QUIET)
if(PKG_CONFIG_FOUND)
  pkg_check_modules(NEARFILE_CURL QUIET IMPORTED_TARGET libcurl)
  pkg_check_modules(NEARFILE_ZIP QUIET IMPORTED_TARGET libzip)
endif()

# nearfile_example(NAME [LIBRARY...]): the example, if its source exists; LIBRARY is a target.
function(nearfile_example name)
  set(source "${PROJECT_SOURCE_DIR}/examples/${name}.c")
  if(NOT EXISTS "${source}")
    return()
  endif()
  foreach(library IN ITEMS Threads::Threads ${ARGN})
    if(NOT TARGET ${library})
      string(REGEX REPLACE ".*::" "" missing "${library}")
      message(STATUS "nearfile: the example ${name} is left out: ${missing} was not found. It needs pkg-config and the "
        "development files of its libraries (Debian: pkg-config libcurl4-openssl-dev libzip-dev)")
      return()
    endif()
  endforeach()
  add_executable(nearfile_example_${name} "${source}")
  set_target_properties(nearfile_example_${name} PROPERTIES
    OUTPUT_NAME ${name} C_STANDARD 11 RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/examples")
  target_compile_options(nearfile_example_${name} PRIVATE -Wall -Wextra)
  target_link_libraries(nearfile_example_${name} PRIVATE nearfile::nearfile Threads::Threads ${ARGN})
endfunction()

nearfile_example(quick)
nearfile_example(http_zip PkgConfig::NEARFILE_CURL PkgConfig::NEARFILE_ZIP)
