# What is installed, in three components: runtime (the shared library), development (everything to build against it) and tool (the
# program, its man page and completions).
# The prefix may be moved afterwards: nothing installed names it.

include(CMakePackageConfigHelpers)

# Debian's shared libraries are not executable, others' are: CMake knows which, and does so for its own targets.
if(CMAKE_INSTALL_SO_NO_EXE)
  set(so_mode FILES)
else()
  set(so_mode PROGRAMS)
endif()
install(${so_mode} "${lib_dir}/${so_file}" DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT runtime)
install(FILES "${lib_dir}/${so_name}" DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT runtime)
install(FILES "${lib_dir}/${so_link}" "${lib_dir}/${static_file}"
  DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT development)
install(DIRECTORY include/ DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT development
  FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")

file(GLOB licenses CONFIGURE_DEPENDS LICENSE*)
install(FILES ${licenses} DESTINATION "${CMAKE_INSTALL_DOCDIR}" COMPONENT runtime)

# `cmake --install --strip` and cpack strip CMake's own targets only; these files are cargo's.
function(strip_on_request component flag dir file)
  install(CODE "
    if(CMAKE_INSTALL_DO_STRIP)
      get_filename_component(dir \"${dir}\" ABSOLUTE BASE_DIR \"\${CMAKE_INSTALL_PREFIX}\")
      execute_process(COMMAND \"${CMAKE_STRIP}\" ${flag} \"\$ENV{DESTDIR}\${dir}/${file}\")
    endif()" COMPONENT ${component})
endfunction()
if(CMAKE_STRIP)
  strip_on_request(runtime --strip-unneeded "${CMAKE_INSTALL_LIBDIR}" ${so_file})
  strip_on_request(development --strip-debug "${CMAKE_INSTALL_LIBDIR}" ${static_file})
endif()

# --- the tool ----------------------------------------------------------------------------------------------------------

if(NEARFILE_TOOL)
  install(PROGRAMS "${tool_file}" DESTINATION "${CMAKE_INSTALL_BINDIR}" COMPONENT tool)
  if(CMAKE_STRIP)
    strip_on_request(tool --strip-all "${CMAKE_INSTALL_BINDIR}" nearfile)
  endif()
  install(FILES share/man/man1/nearfile.1 DESTINATION "${CMAKE_INSTALL_MANDIR}/man1" COMPONENT tool)
  install(FILES share/completions/nearfile.bash
    DESTINATION "${CMAKE_INSTALL_DATADIR}/bash-completion/completions" RENAME nearfile COMPONENT tool)
  install(FILES share/completions/nearfile.fish DESTINATION "${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d" COMPONENT tool)
  # Where packages put them on Debian; elsewhere, and under /usr/local, zsh looks into site-functions.
  if(CMAKE_INSTALL_PREFIX STREQUAL "/usr" AND EXISTS /etc/debian_version)
    set(zsh_dir zsh/vendor-completions)
  else()
    set(zsh_dir zsh/site-functions)
  endif()
  install(FILES share/completions/_nearfile DESTINATION "${CMAKE_INSTALL_DATADIR}/${zsh_dir}" COMPONENT tool)
endif()

# --- find_package ------------------------------------------------------------------------------------------------------

set(config_dir "${CMAKE_INSTALL_LIBDIR}/cmake/nearfile")
configure_package_config_file(cmake/nearfile-config.cmake.in "${PROJECT_BINARY_DIR}/nearfile-config.cmake"
  INSTALL_DESTINATION "${config_dir}"
  PATH_VARS CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR)
# Before 1.0 a minor version may break; after it, a major one.
if(PROJECT_VERSION_MAJOR EQUAL 0)
  set(compatibility SameMinorVersion)
else()
  set(compatibility SameMajorVersion)
endif()
write_basic_package_version_file("${PROJECT_BINARY_DIR}/nearfile-config-version.cmake" COMPATIBILITY ${compatibility})
install(FILES "${PROJECT_BINARY_DIR}/nearfile-config.cmake" "${PROJECT_BINARY_DIR}/nearfile-config-version.cmake"
  DESTINATION "${config_dir}" COMPONENT development)

# --- pkg-config --------------------------------------------------------------------------------------------------------

# The way from the .pc file up to the prefix; a directory that is absolute stays where it is.
set(pc_dir "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
file(RELATIVE_PATH up "/prefix/${pc_dir}" "/prefix")
string(REGEX REPLACE "/$" "" up "${up}")
set(pc_prefix "\${pcfiledir}/${up}")
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(pc_prefix "${CMAKE_INSTALL_PREFIX}")
endif()
foreach(kind IN ITEMS LIBDIR INCLUDEDIR)
  if(IS_ABSOLUTE "${CMAKE_INSTALL_${kind}}")
    set(pc_${kind} "${CMAKE_INSTALL_${kind}}")
  else()
    set(pc_${kind} "\${prefix}/${CMAKE_INSTALL_${kind}}")
  endif()
endforeach()
if(PROJECT_HOMEPAGE_URL)
  set(pc_url "URL: ${PROJECT_HOMEPAGE_URL}\n")
endif()
string(REPLACE ";" " " pc_static_libs "${static_libs}")
configure_file(cmake/nearfile.pc.in "${PROJECT_BINARY_DIR}/nearfile.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/nearfile.pc" DESTINATION "${pc_dir}" COMPONENT development)
