# The libraries that the headers of include/nearfile are adapters for, as targets for their examples and tests.
#
# nearfile_adapter_NAME   curl, libzip, sqlite, libarchive, hdf5, arrow: only where the library is found
# nearfile_adapters       the names of those

option(NEARFILE_REQUIRE_ADAPTERS "Fail where a library of an adapter is missing" OFF)
set(NEARFILE_ARROW_PYTHON "" CACHE FILEPATH "A Python that has pyarrow, whose Arrow C++ is used; empty: an installed Arrow")

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

# --- Arrow: installed, or the one inside PyArrow ---------------------------------------------------------------------------

if(NEARFILE_ARROW_PYTHON)
  execute_process(
    COMMAND "${NEARFILE_ARROW_PYTHON}" -c
      "import pyarrow as p, glob; d = p.get_library_dirs()[0]; print(p.get_include(), *glob.glob(d + '/libarrow.so.*'), *glob.glob(d + '/libparquet.so.*'), sep=';')"
    OUTPUT_VARIABLE arrow OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  list(GET arrow 0 arrow_include)
  list(REMOVE_AT arrow 0)
  add_library(nearfile_arrow INTERFACE IMPORTED)
  set_target_properties(nearfile_arrow PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${arrow_include}" INTERFACE_LINK_LIBRARIES "${arrow}")
else()
  find_package(Parquet QUIET)
  if(TARGET Parquet::parquet_shared)
    add_library(nearfile_arrow ALIAS Parquet::parquet_shared)
  endif()
endif()
nearfile_adapter(arrow nearfile_arrow "Arrow C++ with Parquet, or NEARFILE_ARROW_PYTHON")
