#!/bin/sh
# Runs h2spec, an HTTP/2 conformance suite, against an activator's port before a pod that answers at once.
#
#   go install github.com/summerwind/h2spec/cmd/h2spec@latest
#   activator/tests/h2spec.sh [H2SPEC]
#
# PROFILE=release takes a release build. Skips with a reason when there is no h2spec. EXCEPTIONS below is the whole list of
# cases that may fail, each with why; any other failure fails the script, and so does an exception that passes.
set -eu

H2SPEC=${1:-h2spec}
PORT=${PORT:-21999}
POD=${POD:-127.30.0.1:21998}
EXCEPTIONS='
http2/3.5: Sends invalid connection preface  # not HTTP/2 then: answered 400 in HTTP/1.1, which h2spec takes for a frame
'

if ! command -v "$H2SPEC" >/dev/null; then
    echo "skipped: no h2spec; go install github.com/summerwind/h2spec/cmd/h2spec@latest"
    exit 0
fi
command -v python3 >/dev/null || { echo "skipped: no python3, which plays the pod"; exit 0; }

cd "$(dirname "$0")/../.."
binaries=$(PYTHONPATH=loadtest python3 -c 'import sys; from harness import fed; print(fed.build(sys.argv[1]))' "${PROFILE:-debug}")
work=$(mktemp -d)
pod= activator=
trap 'kill $pod $activator 2>/dev/null || true; rm -rf "$work"' EXIT

# The pod: reads whatever comes, and answers every request with a few bytes.
python3 - "$POD" <<'PY' &
import http.server, sys

class Pod(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        left = int(self.headers.get("content-length") or 0)
        while left > 0:
            left -= len(self.rfile.read(min(left, 65536)) or b"x" * left)
        if self.headers.get("transfer-encoding"):
            while (size := int(self.rfile.readline().split(b";")[0], 16)) > 0:
                self.rfile.read(size + 2)
            while self.rfile.readline().strip():
                pass
        self.send_response(200)
        self.send_header("content-length", "6")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"hello\n")
    do_GET = do_POST = do_HEAD = do_PUT = do_OPTIONS = answer
    def log_message(self, *args):
        pass

class Server(http.server.ThreadingHTTPServer):
    # h2spec breaks requests off, and the pod sees an incomplete body then.
    def handle_error(self, *args):
        pass

host, port = sys.argv[1].rsplit(":", 1)
Server((host, int(port)), Pod).serve_forever()
PY
pod=$!
mkfifo "$work/in"
"$binaries/examples/held" serve 1 "$PORT" "$POD" <"$work/in" >"$work/out" 2>&1 &
activator=$!
exec 3>"$work/in"
tries=0
until python3 -c "import socket; socket.create_connection(('127.0.0.1', $PORT), 1)" 2>/dev/null; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { echo "the activator does not listen on $PORT"; cat "$work/out"; exit 1; }
    sleep 0.1
done

"$H2SPEC" -h 127.0.0.1 -p "$PORT" -o 5 -j "$work/report.xml" >"$work/text" 2>&1 || true
tail -n 5 "$work/text"
EXCEPTIONS=$EXCEPTIONS python3 - "$work/report.xml" <<'PY'
import os, sys, xml.etree.ElementTree as tree

allowed = {line.split("#")[0].strip() for line in os.environ["EXCEPTIONS"].splitlines() if line.split("#")[0].strip()}
failed, count = set(), 0
for case in tree.parse(sys.argv[1]).getroot().iter("testcase"):
    count += 1
    if case.find("failure") is not None or case.find("error") is not None:
        failed.add(f'{case.get("package")}: {case.get("classname")}')
for name in sorted(failed - allowed):
    print("failed:", name)
for name in sorted(allowed - failed):
    print("passes now, take it from the list:", name)
print(f"{count} cases, {len(failed)} failed, {len(allowed)} exceptions")
sys.exit(failed != allowed or count < 100)
PY
