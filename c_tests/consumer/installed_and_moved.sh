#!/bin/sh
# What is installed works from where it was moved to, through find_package and through pkg-config.
. "$(dirname "$0")/common.sh"

"$CMAKE" --install "$BUILD" --prefix "$work/installed"
mv "$work/installed" "$work/moved"
! grep -rlF -e "$work/installed" -e "$BUILD" --include='*.cmake' --include='*.pc' "$work/moved" ||
  die "the files above name a directory of the build"
pc=$(find "$work/moved" -name nearfile.pc)
lib=$(dirname "$(dirname "$pc")")
for link in libnearfile.so "libnearfile.so.${VERSION%%.*}"; do
  [ "$(readlink -f "$lib/$link")" = "$(readlink -f "$lib")/libnearfile.so.$VERSION" ] || die "$link leads elsewhere"
done
if [ "$TOOL" = ON ]; then
  tool=$work/moved/bin/nearfile
  [ "$("$tool" --version)" = "nearfile $VERSION" ] || die "the tool has another version"
  if readelf -d "$tool" | grep -F libnearfile; then die "the tool needs the library, or takes its name"; fi
  for file in man1/nearfile.1 completions/nearfile vendor_completions.d/nearfile.fish _nearfile; do
    find "$work/moved/share" -path "*/$file" -size +0 | grep -q . || die "$file was not installed"
  done
  bash -c ". '$work/moved/share/bash-completion/completions/nearfile'; COMP_WORDS=(nearfile ver) COMP_CWORD=1
    _nearfile nearfile ver nearfile; [ \"\${COMPREPLY[*]}\" = verify ]" || die "bash completes 'nearfile ver' otherwise"
fi

# The adapters are tried where the libraries of all were found.
all_adapters=OFF
case " $ADAPTERS " in *" curl libzip sqlite libarchive hdf5 "*) all_adapters=ON ;; esac

"$CMAKE" -S "$here" -B "$work/cmake" -G "$GENERATOR" -DCMAKE_BUILD_TYPE="$BUILD_TYPE" \
  -DCMAKE_PREFIX_PATH="$work/moved" -DCONSUMER_VERSION="${VERSION%.*}" -DCONSUMER_ADAPTERS=$all_adapters
"$CMAKE" --build "$work/cmake"
for language in c cpp; do
  check_program "$work/cmake/${language}_nearfile" shared
  check_program "$work/cmake/${language}_shared" shared
  check_program "$work/cmake/${language}_static" static
  [ $all_adapters = OFF ] || check_program "$work/cmake/${language}_adapters" shared
done

# Without the archive: asked for, it is missed by name; not asked for, it is not missed.
archive=$lib/libnearfile.a
mv "$archive" "$archive.away"
mkdir "$work/static" "$work/any"
printf '%s\n' 'cmake_minimum_required(VERSION 3.18)' 'project(p LANGUAGES C)' \
  'find_package(nearfile REQUIRED COMPONENTS static)' >"$work/static/CMakeLists.txt"
printf '%s\n' 'cmake_minimum_required(VERSION 3.18)' 'project(p LANGUAGES C)' \
  'find_package(nearfile REQUIRED)' >"$work/any/CMakeLists.txt"
configure() { "$CMAKE" -S "$work/$1" -B "$work/$1/build" -G "$GENERATOR" -DCMAKE_PREFIX_PATH="$work/moved"; }
if configure static >"$work/static/log" 2>&1; then die "a static library that is not there was found"; fi
tr -s ' \n' ' ' <"$work/static/log" | grep -qF "nearfile's static library is not installed" || {
  cat "$work/static/log"
  die "the message does not tell what is missing"
}
configure any
mv "$archive.away" "$archive"

mkdir "$work/pkg-config"
export PKG_CONFIG_PATH="${pc%/*}"
[ "$(pkg-config --modversion nearfile)" = "$VERSION" ] || die "nearfile.pc has another version"
make -C "$here" OUT="$work/pkg-config" CC="$CC" CXX="$CXX"
[ $all_adapters = OFF ] || make -C "$here" OUT="$work/pkg-config" CC="$CC" CXX="$CXX" with_adapters
for language in c cpp; do
  LD_LIBRARY_PATH=$lib check_program "$work/pkg-config/${language}_shared" shared
  check_program "$work/pkg-config/${language}_static" static
  [ $all_adapters = OFF ] || LD_LIBRARY_PATH=$lib check_program "$work/pkg-config/${language}_adapters" shared
done
