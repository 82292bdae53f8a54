# Sourced by `uninstall` and `upgrade`: three applications under load, and whether any request failed.
# awake: opted in, asked all the time. asleep: opted in, and first asked while something happens. control: never opted in.

LOADTEST=${DORMOUSE_LOADTEST:-$(target_directory)/debug/dormouse-loadtest}
[ -x "$LOADTEST" ] || (cd "$ROOT" && cargo build --locked --quiet -p dormouse-loadtest)
OUT=$(mktemp -d)
loads=() load_names=()
finish() {
    code=$?
    trap - EXIT
    for pid in "${loads[@]}"; do kill "$pid" 2>/dev/null || true; done
    if [ "$code" = 0 ]; then rm -rf "$OUT"; else say "what was seen: $OUT"; fi
    k delete namespace "$SPACE" --ignore-not-found --wait=false >/dev/null || true
    exit "$code"
}
trap finish EXIT

application() { # name, annotation value
    cat <<YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: $1, namespace: $SPACE}
spec:
  replicas: 2
  selector: {matchLabels: {app: $1}}
  template:
    metadata: {labels: {app: $1}}
    spec:
      terminationGracePeriodSeconds: 5
      automountServiceAccountToken: false
      containers:
        - name: app
          image: docker.io/local/dormouse:dev
          args: [hello]
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: $1, namespace: $SPACE}
spec:
  selector: {app: $1}
  ports: [{name: http, port: 80, targetPort: http}]
YAML
}
applications() { # deploys all three, ready and not opted in
    k create namespace "$SPACE" >/dev/null
    for app in awake asleep control; do application "$app" | k apply -f - >/dev/null; done
    for app in awake asleep control; do k -n "$SPACE" rollout status "deployment/$app" --timeout=60s >/dev/null; done
}
phase() { [ "$(k -n "$SPACE" get route "$1" -o jsonpath='{.status.phase}')" = "$2" ]; }
captured() { [ "$(k -n "$SPACE" get route "$1" -o jsonpath='{.status.conditions[?(@.type=="Captured")].status}')" = True ]; }
opt_in() { # until awake is captured and asleep asleep
    k -n "$SPACE" annotate service awake dormouse.dev/scale-to-zero=true dormouse.dev/keep-alive=10m dormouse.dev/min-scale=1 >/dev/null
    k -n "$SPACE" annotate service asleep dormouse.dev/scale-to-zero=true dormouse.dev/keep-alive=6s >/dev/null
    wait_for 60 "awake to be captured" captured awake
    wait_for 90 "asleep to fall asleep" phase asleep Asleep
}
address() { k -n "$SPACE" get service "$1" -o jsonpath='{.spec.clusterIP}'; }
load() { # name, Service, options of dormouse-loadtest…
    local name=$1 service=$2
    shift 2
    inside "$LOADTEST" "http://$(address "$service")/" -o json --timeout 90s "$@" >"$OUT/$name.json" 2>"$OUT/$name.err" &
    loads+=($!)
    load_names+=("$name")
}
verdict() { # waits for all loads; fails when a request failed; the control's figures stand beside
    local bad=0 pid name
    for pid in "${loads[@]}"; do wait "$pid" || true; done
    loads=()
    for name in "${load_names[@]}"; do
        python3 - "$name" "$OUT/$name.json" <<'PY' || [ "${name%%-*}" = control ] || bad=1
import json, sys
name, path = sys.argv[1:]
result = json.load(open(path))
total, failed = result["sent"], result["failed"]
what = json.dumps([result["statuses"], result["errors"], result["firstErrors"][:3]]) if failed else ""
print(f"  {name:14} {total:6} requests, {failed} failed, longest {result['latencyMs']['max']:.0f} ms {what}")
sys.exit(1 if failed or not total else 0)
PY
    done
    load_names=()
    return $bad
}
