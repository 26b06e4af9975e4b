# shellcheck shell=bash
# Sourced: an nginx of our own on a free loopback port, over a directory of files, with a delay before each answer.
#
#   start_far_server ROOT DELAY_MS SCRATCH   sets far_server_pid and far_server_port; logs requests in SCRATCH/access.log
#   stop_far_server
#
# /far/ has the delay; /near/ has none and is not logged; /whole/ has the delay and ignores Range; /headless/ answers HEAD with 405,
# /forbidden/ everything with 403; /moved/ leads to /far/; /slow/ sends 2 MB a second.

PATH=$PATH:/usr/sbin # nginx, where a user's PATH lacks it
far_server_pid=
far_server_port=

stop_far_server() {
  [[ -n $far_server_pid ]] || return 0
  kill "$far_server_pid" 2>/dev/null || true
  wait "$far_server_pid" 2>/dev/null || true
  far_server_pid=
}

# auth_request asks /wait before each request, and the echo module answers that after a sleep: a delay that leaves nginx's own
# ranges, ETags and If-Match as they are. One process (master_process off), so one pid, and no user but the one who runs this.
write_nginx_conf() {
  local root=$1 delay_ms=$2 scratch=$3
  cat <<CONF
load_module $(find /usr/lib/nginx/modules -name ngx_http_echo_module.so);
daemon off;
master_process off;
pid $scratch/nginx.pid;
error_log $scratch/error.log;
events { worker_connections 256; }
http {
  client_body_temp_path $scratch/body;
  proxy_temp_path $scratch/proxy;
  fastcgi_temp_path $scratch/fastcgi;
  uwsgi_temp_path $scratch/uwsgi;
  scgi_temp_path $scratch/scgi;
  log_format request '\$request_method \$uri \$status \$body_bytes_sent';
  access_log $scratch/access.log request;
  root $root;
  server {
    listen 127.0.0.1:$far_server_port;
    location /far/ { alias $root/; auth_request /wait; }
    location /near/ { alias $root/; access_log off; }
    location /whole/ { alias $root/; auth_request /wait; max_ranges 0; }
    location /headless/ { alias $root/; if (\$request_method = HEAD) { return 405; } }
    location /forbidden/ { return 403; }
    location /moved/ { rewrite ^/moved/(.*) /far/\$1 redirect; }
    location /slow/ { alias $root/; limit_rate 2m; }
    location = /wait {
      internal;
      echo_sleep $(printf '0.%03d' "$delay_ms");
      echo "";
    }
  }
}
CONF
}

start_far_server() {
  local scratch=$3 _
  for _ in 1 2 3; do
    # Another program may take it before nginx does: then the next.
    far_server_port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
    write_nginx_conf "$@" >"$scratch/nginx.conf"
    # nginx dies with this script, whatever ends it.
    setpriv --pdeathsig TERM nginx -p "$scratch" -e "$scratch/error.log" -c "$scratch/nginx.conf" >&2 &
    far_server_pid=$!
    for _ in {1..100}; do
      if [[ -s $scratch/nginx.pid ]]; then return; fi # written once it listens
      kill -0 "$far_server_pid" 2>/dev/null || break
      sleep 0.05
    done
    stop_far_server
  done
  cat "$scratch/error.log" >&2
  echo "nginx does not start" >&2
  return 1
}
