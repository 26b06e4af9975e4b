#!/usr/bin/env bash
# Guards docs/guide.md: its project, built against the installed package, over nginx (FAR_ROOT, FAR_URL, FAR_LOG of with_servers.sh), gives
# the numbers that the guide promises: cold, warm, with eight forked workers and under a size limit. ctest sets CMAKE, GENERATOR, BUILD, CC.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$NEARFILE_TEST_DIR
size=$((32 << 20))
head -c "$size" /dev/urandom >"$FAR_ROOT/data.bin"
url=$FAR_URL/far/data.bin

"$CMAKE" --install "$BUILD" --prefix "$work/installed" >"$work/install.log"
"$CMAKE" -S "$here/../../examples/guide" -B "$work/build" -G "$GENERATOR" -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_COMPILER="$CC" \
  -DCMAKE_C_FLAGS="-Wall -Wextra -Werror" -DCMAKE_PREFIX_PATH="$work/installed"
"$CMAKE" --build "$work/build"

# says NAME VALUE: the program that ran last printed the line.
says() {
  local line
  line=$(grep -E "^$1 {2,}|^$1 " "$work/out") || { echo "no line '$1'" >&2; exit 1; }
  [[ $(tr -s ' ' <<<"$line") == "$1 $2" ]] || { printf "'%s', and not '%s'\n" "$line" "$2" >&2; exit 1; }
}
# number NAME
number() { sed -n -E "s/^$1 +([0-9]+).*/\1/p" "$work/out"; }
run() { "$work/build/$1" "${@:2}" >"$work/out"; cat "$work/out"; }
gets() { grep -c '^GET .* 206 ' "$FAR_LOG" || true; }

run near "$url" "$work/near" # cold
says "read" "$size bytes"
says "from the source" "$size bytes"
says "pages fetched" 32
says "pages verified" 32
(( $(gets) > 0 ))

before=$(gets)
run near "$url" "$work/near" # warm
says "hits, misses" "512, 0"
says "from the source" "0 bytes"
says "pages fetched" 0
says "pages verified" 32
(( $(gets) == before ))

run workers "$url" "$work/shared" # eight, cold: each byte is fetched once
says "workers failed" 0
says "bytes served" $((8 * size))
says "from the source" "$size bytes"
says "passed through" 0
says "evicted" "0 pages"
says "kept" "$size bytes"

run workers "$url" "$work/limited" $((8 << 20)) # a quarter of it fits
says "workers failed" 0
says "bytes served" $((8 * size))
(( $(number kept) <= 8 << 20 && $(number "from the source") > size ))
mirror=$(find "$work/limited" -name '*.data' -printf '%k\n')
(( mirror <= 8 << 10 )) || { echo "the mirror takes $mirror KiB" >&2; exit 1; }
echo "guide: ok"
