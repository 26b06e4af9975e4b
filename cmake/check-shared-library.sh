#!/bin/sh
# check-shared-library.sh LIBRARY SONAME HEADER CC NM READELF
# The shared library exports what the header declares and nothing else, has its name, stays loaded after a dlclose
# (threads run its destructors), and searches no directory of its own.
set -eu
library=$1 soname=$2 header=$3 cc=$4 nm=$5 readelf=$6
failed=0
complain() {
  echo "$library: $*" >&2
  failed=1
}

declared=$("$cc" -E -P "$header" | grep -oE '\bnearfile_[a-z0-9_]+ *\(' | tr -d ' (' | sort -u)
exported=$("$nm" -D --defined-only "$library" | awk '{ print $NF }' | sort -u)
[ -n "$declared" ] || complain "no function found in $header"
for name in $exported; do
  case $name in
    nearfile_*) echo "$declared" | grep -qx "$name" || complain "exports $name, which the header does not declare" ;;
    *) complain "exports $name, which is not nearfile's" ;;
  esac
done
for name in $declared; do
  echo "$exported" | grep -qx "$name" || complain "does not export $name, which the header declares"
done

dynamic=$("$readelf" -d "$library")
echo "$dynamic" | grep -qF "soname: [$soname]" || complain "SONAME is not $soname"
echo "$dynamic" | grep -q 'FLAGS_1.*NODELETE' || complain "NODELETE is not set"
echo "$dynamic" | grep -qE '\((RPATH|RUNPATH)\)' && complain "has an RPATH"
exit $failed
