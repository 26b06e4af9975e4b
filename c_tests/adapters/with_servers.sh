#!/usr/bin/env bash
# with_servers.sh PROGRAM [ARGUMENT...]: runs a test of an adapter in NEARFILE_TEST_DIR with an nginx that takes 10 ms a request and
# with a server that misbehaves on request, both over one directory of files.
#
#   FAR_ROOT the files   FAR_URL, BAD_URL the servers   FAR_LOG, BAD_LOG a line for each request they answered
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/far_server.sh
. "$here/../../scripts/far_server.sh"

scratch=$NEARFILE_TEST_DIR/servers
export FAR_ROOT=$NEARFILE_TEST_DIR/far FAR_LOG=$scratch/access.log BAD_LOG=$scratch/bad.log
export no_proxy="127.0.0.1${no_proxy:+,$no_proxy}"
mkdir "$scratch" "$FAR_ROOT"
bad_pid=
cleanup() {
  stop_far_server
  [[ -z $bad_pid ]] || kill "$bad_pid" 2>/dev/null || true
}
trap cleanup EXIT
trap 'exit 143' TERM INT HUP

start_far_server "$FAR_ROOT" 10 "$scratch"
setpriv --pdeathsig TERM python3 "$here/bad_server.py" "$FAR_ROOT" "$BAD_LOG" "$scratch/bad.port" &
bad_pid=$!
for _ in {1..200}; do
  [[ ! -s $scratch/bad.port ]] || break
  sleep 0.05
done
FAR_URL=http://127.0.0.1:$far_server_port BAD_URL=http://127.0.0.1:$(cat "$scratch/bad.port") "$@"
