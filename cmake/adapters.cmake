# The libraries that the headers of include/nearfile are adapters for, as targets for their examples and tests.
#
# nearfile_adapter_NAME   curl, libzip, sqlite, libarchive, hdf5: only where the library is found
# nearfile_adapters       the names of those

option(NEARFILE_REQUIRE_ADAPTERS "Fail where a library of an adapter is missing" OFF)

find_package(PkgConfig QUIET)
set(nearfile_adapters)

# nearfile_adapter(NAME TARGET DEBIAN_PACKAGE): TARGET is there if the library is.
function(nearfile_adapter name library package)
  if(TARGET ${library})
    add_library(nearfile_adapter_${name} INTERFACE)
    target_link_libraries(nearfile_adapter_${name} INTERFACE ${library})
    set(nearfile_adapters ${nearfile_adapters} ${name} PARENT_SCOPE)
  elseif(NEARFILE_REQUIRE_ADAPTERS)
    message(FATAL_ERROR "nearfile: no library for nearfile/${name}: install pkg-config and ${package}")
  else()
    message(STATUS "nearfile: the example and the test of nearfile/${name} are left out: no pkg-config or no ${package}")
  endif()
endfunction()

foreach(library IN ITEMS curl:libcurl:libcurl4-openssl-dev libzip:libzip:libzip-dev sqlite:sqlite3:libsqlite3-dev
    libarchive:libarchive:libarchive-dev hdf5:hdf5:libhdf5-dev)
  string(REPLACE ":" ";" library "${library}")
  list(GET library 0 name)
  list(GET library 1 module)
  list(GET library 2 package)
  if(PKG_CONFIG_FOUND)
    pkg_check_modules(NEARFILE_${name} QUIET IMPORTED_TARGET ${module})
  endif()
  nearfile_adapter(${name} PkgConfig::NEARFILE_${name} ${package})
endforeach()
