# The crate as C libraries: nearfile::shared, nearfile::static and nearfile::nearfile in the build tree.

# --- cargo, and what it builds for -------------------------------------------------------------------------------------

find_program(NEARFILE_CARGO cargo PATHS "$ENV{CARGO_HOME}/bin" "$ENV{HOME}/.cargo/bin" DOC "cargo, which builds nearfile")
if(NOT NEARFILE_CARGO)
  message(FATAL_ERROR
    "nearfile: cargo was not found in PATH, $CARGO_HOME/bin or ~/.cargo/bin. "
    "Install Rust (by rustup, or your distribution's cargo), or set NEARFILE_CARGO to the cargo to use.")
endif()
get_filename_component(cargo_dir "${NEARFILE_CARGO}" DIRECTORY)
find_program(NEARFILE_RUSTC rustc HINTS "${cargo_dir}" DOC "rustc, asked for the target and its system libraries")
if(NOT NEARFILE_RUSTC)
  message(FATAL_ERROR "nearfile: rustc was found neither beside ${NEARFILE_CARGO} nor in PATH; set NEARFILE_RUSTC.")
endif()

# The target is always named, so that cargo's output directory does not depend on the user's cargo configuration.
set(NEARFILE_RUST_TARGET "$ENV{CARGO_BUILD_TARGET}" CACHE STRING "Rust target triple; empty: the host's")
set(rust_target "${NEARFILE_RUST_TARGET}")
if(NOT rust_target)
  execute_process(COMMAND "${NEARFILE_RUSTC}" -vV
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" OUTPUT_VARIABLE rustc_version ERROR_VARIABLE rustc_error)
  if(NOT rustc_version MATCHES "\nhost: ([^\n]+)")
    message(FATAL_ERROR "nearfile: ${NEARFILE_RUSTC} -vV does not tell its host: ${rustc_version}${rustc_error}")
  endif()
  set(rust_target "${CMAKE_MATCH_1}")
endif()

# What a program that links the static library needs besides it; known to rustc only.
execute_process(
  COMMAND "${NEARFILE_RUSTC}" --target "${rust_target}" --crate-type staticlib --print native-static-libs
    -o "${CMAKE_CURRENT_BINARY_DIR}/CMakeFiles/nearfile-empty.a" -
  WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" INPUT_FILE /dev/null
  OUTPUT_VARIABLE rustc_output ERROR_VARIABLE rustc_output RESULT_VARIABLE rustc_result)
file(REMOVE "${CMAKE_CURRENT_BINARY_DIR}/CMakeFiles/nearfile-empty.a")
if(NOT rustc_output MATCHES "native-static-libs: ([^\n]+)" OR NOT rustc_result EQUAL 0)
  message(FATAL_ERROR "nearfile: ${NEARFILE_RUSTC} cannot build for ${rust_target}:\n${rustc_output}")
endif()
separate_arguments(static_libs UNIX_COMMAND "${CMAKE_MATCH_1}")
list(REMOVE_ITEM static_libs -lc)
list(REMOVE_DUPLICATES static_libs)

# --- the build ---------------------------------------------------------------------------------------------------------

# A generator of several configurations gets the release profile in all of them.
if(CMAKE_BUILD_TYPE STREQUAL "Debug")
  set(cargo_profile dev)
  set(cargo_profile_dir debug)
else()
  set(cargo_profile release)
  set(cargo_profile_dir release)
endif()
# Several build trees may share it: cargo locks it and builds once.
set(NEARFILE_CARGO_TARGET_DIR "${PROJECT_BINARY_DIR}/cargo" CACHE PATH "Where cargo builds")
mark_as_advanced(NEARFILE_CARGO NEARFILE_RUSTC NEARFILE_RUST_TARGET NEARFILE_CARGO_TARGET_DIR)

set(cargo_out "${NEARFILE_CARGO_TARGET_DIR}/${rust_target}/${cargo_profile_dir}")
set(lib_dir "${PROJECT_BINARY_DIR}/lib")
set(so_link libnearfile.so)
set(so_name libnearfile.so.${PROJECT_VERSION_MAJOR})
set(so_file libnearfile.so.${PROJECT_VERSION})
set(static_file libnearfile.a)

if(NEARFILE_INSTALL)
  set(all ALL)
else()
  set(all)
endif()
# Always run, for cargo alone knows what is out of date; what it left as it was is not copied, so that nothing relinks.
add_custom_target(nearfile_cargo ${all}
  COMMAND "${NEARFILE_CARGO}" rustc --locked --lib --crate-type cdylib,staticlib --profile ${cargo_profile}
    --target ${rust_target} --target-dir "${NEARFILE_CARGO_TARGET_DIR}"
  COMMAND "${CMAKE_COMMAND}" -E make_directory "${lib_dir}"
  COMMAND "${CMAKE_COMMAND}" -E copy_if_different "${cargo_out}/libnearfile.so" "${lib_dir}/${so_file}"
  COMMAND "${CMAKE_COMMAND}" -E copy_if_different "${cargo_out}/libnearfile.a" "${lib_dir}/${static_file}"
  COMMAND "${CMAKE_COMMAND}" -E create_symlink ${so_file} "${lib_dir}/${so_name}"
  COMMAND "${CMAKE_COMMAND}" -E create_symlink ${so_name} "${lib_dir}/${so_link}"
  BYPRODUCTS
    "${lib_dir}/${so_file}" "${lib_dir}/${static_file}" "${lib_dir}/${so_name}" "${lib_dir}/${so_link}"
  WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
  COMMENT "cargo: nearfile ${PROJECT_VERSION} (${cargo_profile}, ${rust_target})"
  USES_TERMINAL VERBATIM)

# --- the tool ----------------------------------------------------------------------------------------------------------

if(NEARFILE_TOOL)
  set(tool_file "${PROJECT_BINARY_DIR}/bin/nearfile")
  add_custom_target(nearfile_tool ${all}
    COMMAND "${NEARFILE_CARGO}" build --locked --bin nearfile --features tool --profile ${cargo_profile}
      --target ${rust_target} --target-dir "${NEARFILE_CARGO_TARGET_DIR}"
    COMMAND "${CMAKE_COMMAND}" -E make_directory "${PROJECT_BINARY_DIR}/bin"
    COMMAND "${CMAKE_COMMAND}" -E copy_if_different "${cargo_out}/nearfile" "${tool_file}"
    BYPRODUCTS "${tool_file}"
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
    COMMENT "cargo: the tool nearfile ${PROJECT_VERSION} (${cargo_profile}, ${rust_target})"
    USES_TERMINAL VERBATIM)
  add_dependencies(nearfile_tool nearfile_cargo) # one cargo at a time
endif()

# --- the targets; nearfile-config.cmake.in makes the same of what is installed -----------------------------------------

add_library(nearfile::shared SHARED IMPORTED GLOBAL)
set_target_properties(nearfile::shared PROPERTIES
  IMPORTED_LOCATION "${lib_dir}/${so_file}"
  IMPORTED_SONAME ${so_name}
  INTERFACE_INCLUDE_DIRECTORIES "${PROJECT_SOURCE_DIR}/include")

add_library(nearfile::static STATIC IMPORTED GLOBAL)
set_target_properties(nearfile::static PROPERTIES
  IMPORTED_LOCATION "${lib_dir}/${static_file}"
  IMPORTED_LINK_INTERFACE_LANGUAGES C
  INTERFACE_INCLUDE_DIRECTORIES "${PROJECT_SOURCE_DIR}/include"
  INTERFACE_LINK_LIBRARIES "${static_libs}")

add_dependencies(nearfile::shared nearfile_cargo)
add_dependencies(nearfile::static nearfile_cargo)

set(link "${NEARFILE_LINK}")
if(NOT link)
  if(DEFINED BUILD_SHARED_LIBS AND NOT BUILD_SHARED_LIBS)
    set(link static)
  else()
    set(link shared)
  endif()
endif()
if(NOT link MATCHES "^(shared|static)$")
  message(FATAL_ERROR "nearfile: NEARFILE_LINK is shared or static, not '${link}'")
endif()
add_library(nearfile::nearfile ALIAS nearfile::${link})
