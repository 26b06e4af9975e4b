#!/usr/bin/env bash
# with_servers.sh PROGRAM [ARGUMENT...]: runs a test of an adapter in NEARFILE_TEST_DIR with an nginx that takes 10 ms a request and
# with a server that misbehaves on request, both over one directory of files.
#
#   FAR_ROOT the files   FAR_URL, BAD_URL the servers   FAR_LOG, BAD_LOG a line for each request they answered
#   TLS_URL the one that misbehaves, over HTTPS   TLS_CERTIFICATE what its certificate is checked with
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
export TLS_CERTIFICATE=$scratch/certificate.pem
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=far -addext subjectAltName=IP:127.0.0.1 \
  -keyout "$scratch/key.pem" -out "$TLS_CERTIFICATE" 2>"$scratch/openssl.log" || { cat "$scratch/openssl.log" >&2; exit 1; }
cat "$scratch/key.pem" "$TLS_CERTIFICATE" >"$scratch/both.pem"
setpriv --pdeathsig TERM python3 "$here/bad_server.py" "$FAR_ROOT" "$BAD_LOG" "$scratch/both.pem" "$scratch/ports" &
bad_pid=$!
for _ in {1..200}; do
  [[ ! -s $scratch/ports ]] || break
  sleep 0.05
done
read -r bad_port tls_port <"$scratch/ports"
export FAR_URL=http://127.0.0.1:$far_server_port BAD_URL=http://127.0.0.1:$bad_port TLS_URL=https://127.0.0.1:$tls_port
"$@"
