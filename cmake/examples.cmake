# examples/*: those whose libraries are absent are left out, with a message that tells which.

find_package(Threads QUIET)

# nearfile_example(FILE [ADAPTER...]): the example, if it and the libraries of these adapters are there.
function(nearfile_example file)
  set(source "${PROJECT_SOURCE_DIR}/examples/${file}")
  get_filename_component(name "${file}" NAME_WE)
  list(TRANSFORM ARGN PREPEND nearfile_adapter_ OUTPUT_VARIABLE libraries)
  foreach(library IN ITEMS Threads::Threads ${libraries})
    if(NOT TARGET ${library})
      return()
    endif()
  endforeach()
  add_executable(nearfile_example_${name} "${source}")
  set_target_properties(nearfile_example_${name} PROPERTIES
    OUTPUT_NAME ${name} C_STANDARD 11 CXX_STANDARD 17 RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/examples")
  target_compile_options(nearfile_example_${name} PRIVATE -Wall -Wextra)
  target_link_libraries(nearfile_example_${name} PRIVATE nearfile::nearfile Threads::Threads ${libraries})
endfunction()

nearfile_example(quick.c)
nearfile_example(http_cat.c curl)
nearfile_example(http_zip.c curl libzip)
nearfile_example(http_sqlite.c curl sqlite)
nearfile_example(http_archive.c curl libarchive)
nearfile_example(http_hdf5.c curl hdf5)
if(TARGET nearfile_adapter_arrow)
  enable_language(CXX)
  nearfile_example(http_parquet.cpp curl arrow)
endif()
