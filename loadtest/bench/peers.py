"""What the activator is measured beside, and what all of them stand in front of. Every proxy has one thread.

Each proxy offers the same services, by name, each on a port of its own:

    http    HTTP/1.1 to an HTTP/1.1 backend, kept connections, X-Forwarded-For added
    h2c     HTTP/2 in clear text to the same; to the backend too, where the proxy can
    tcp     bytes
    mute    HTTP/1.1 to a backend that never answers: a request in flight
    asleep  HTTP/1.1 where nothing can answer yet: a request held
"""

import shutil
import subprocess
import sys

import envoy
from harness.fed import Fed
from harness.processes import open_files, wait_for_port

BACKEND = {"http": 22001, "h2c": 22002, "tcp": 22003, "mute": 22004}
SERVICES = ("http", "h2c", "tcp", "mute", "asleep")
# A benchmark must not meet a limit of requests.
NGINX = """
daemon off; master_process off; error_log {folder}/{name}.log warn; pid {folder}/{name}.pid;
{modules}
events {{ worker_connections {files}; }}
{stream}
http {{
    access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_timeout 1h; keepalive_requests 1000000000;
    client_body_temp_path {folder}/{name}-body; proxy_temp_path {folder}/{name}-proxy; fastcgi_temp_path {folder}/{name}-f;
    uwsgi_temp_path {folder}/{name}-u; scgi_temp_path {folder}/{name}-s; default_type application/octet-stream;
    {http}
}}
"""
STREAM_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"


def install(missing):
    """Debian's packages of what is missing; says so, and what it runs."""
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    print("installs:", " ".join(command))
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    # No package may start a server of its own on this machine: `invoke-rc.d` obeys this file.
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                                                                       "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"})


def nginx(processes, folder, name, core, http, stream=""):
    """One process of nginx."""
    modules = f"load_module {STREAM_MODULE};" if stream else ""
    path = folder / f"{name}.conf"
    path.write_text(NGINX.format(folder=folder, name=name, modules=modules, stream=stream, http=http,
                                 files=open_files()))
    return processes.start(name, ["nginx", "-c", path, "-p", folder, "-e", folder / f"{name}.log"], core)


def backend(processes, folder, wire, core):
    """The application: nginx with a text of two bytes and two files, a source of bytes, and one that never answers."""
    for name, size in (("64k", 64 << 10), ("10m", 10 << 20)):
        (folder / name).write_bytes(b"x" * size)
    places = f'location = / {{ return 200 "ok"; }} location / {{ root {folder}; }}'
    http = f"server {{ listen 127.0.0.1:{BACKEND['http']} backlog=4096; {places} }}\n"
    http += f"server {{ listen 127.0.0.1:{BACKEND['h2c']} http2 backlog=4096; {places} }}"
    nginx(processes, folder, "backend", core, http)
    processes.start("source", [wire, "source", f"127.0.0.1:{BACKEND['tcp']}"], core)
    processes.start("mute", [wire, "mute", f"127.0.0.1:{BACKEND['mute']}"], core)
    for port in BACKEND.values():
        wait_for_port("127.0.0.1", port)


class Nginx:
    """One worker process and no master. It has no queue for what nobody can answer, and speaks no HTTP/2 to backends."""

    name, base = "nginx", 22010
    lacks = {"asleep": "nginx holds no request while no backend can answer"}
    remarks = {"h2c": "HTTP/1.1 to the backend: nginx speaks no HTTP/2 there"}

    def start(self, processes, folder, core, **_):
        ports = {service: self.base + number for number, service in enumerate(SERVICES)}
        pass_to = """location / {{ proxy_pass http://{0}; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_max_temp_file_size 0; proxy_read_timeout 1h; }}"""
        http = ""
        for service in ("http", "mute"):
            http += f"upstream {service} {{ server 127.0.0.1:{BACKEND[service]}; keepalive 1024; keepalive_requests 1000000000; }}\n"
        for service, upstream, flag in (("http", "http", ""), ("h2c", "http", "http2"), ("mute", "mute", "")):
            http += f"server {{ listen 127.0.0.1:{ports[service]} {flag} backlog=4096; {pass_to.format(upstream)} }}\n"
        stream = f"stream {{ server {{ listen 127.0.0.1:{ports['tcp']}; proxy_pass 127.0.0.1:{BACKEND['tcp']}; }} }}"
        process = nginx(processes, folder, "nginx", core, http, stream)
        for service in ("http", "h2c", "tcp", "mute"):
            wait_for_port("127.0.0.1", ports[service])
        return process, ports

    @staticmethod
    def version():
        return subprocess.run(["nginx", "-v"], capture_output=True, text=True).stderr.strip().split(": ")[-1]


class Haproxy:
    """One thread. A request that nobody can answer yet stands in the queue of a server with `maxconn 1`."""

    name, base = "haproxy", 22020
    lacks = {}
    remarks = {"asleep": "in the queue of a server with maxconn 1"}

    def start(self, processes, folder, core, **_):
        ports = {service: self.base + number for number, service in enumerate(SERVICES)}
        # A connection is a file on each side.
        text = f"""
global
    nbthread 1
    maxconn {open_files() // 2 - 100}
    log /dev/null local0
defaults
    mode http
    http-reuse always
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-request 1h
    timeout http-keep-alive 1h
    timeout queue 1h
"""
        for service, flags, server in (
            ("http", "", BACKEND["http"]),
            ("h2c", "proto h2", f"{BACKEND['h2c']} proto h2"),
            ("tcp", "", BACKEND["tcp"]),
            ("mute", "", BACKEND["mute"]),
            ("asleep", "", f"{BACKEND['mute']} maxconn 1"),
        ):
            mode = "mode tcp" if service == "tcp" else "mode http\n    option forwardfor"
            text += f"listen {service}\n    {mode}\n    bind 127.0.0.1:{ports[service]} {flags} backlog 4096\n"
            text += f"    server one 127.0.0.1:{server}\n"
        path = folder / "haproxy.cfg"
        path.write_text(text)
        process = processes.start("haproxy", ["haproxy", "-q", "-db", "-f", path], core, log=folder / "haproxy.log")
        for port in ports.values():
            wait_for_port("127.0.0.1", port)
        return process, ports

    @staticmethod
    def version():
        text = subprocess.run(["haproxy", "-v"], capture_output=True, text=True).stdout
        return " ".join(text.split()[:3]).replace("HAProxy version", "haproxy")


class Dormouse:
    """The activator with one worker, as shipped, and an autoscaler's ear at its report stream on the other core."""

    name, base = "dormouse", 22030
    lacks = {}
    remarks = {"asleep": "a Service at zero pods"}

    def start(self, processes, folder, core, binaries, other, **_):
        ports = {service: self.base + number for number, service in enumerate(SERVICES)}
        fed = Fed(processes, binaries, core, flags=("--workers", 1), reports_core=other, log=folder / "dormouse.log")
        for service in SERVICES:
            pods = [("127.0.0.1", BACKEND[service])] if service in BACKEND else []
            fed.route(service, ports[service], pods, h2c=service == "h2c", protocol="tcp" if service == "tcp" else "http")
        return fed.process, ports

    @staticmethod
    def version():
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
        return f"dormouse {commit}"


def available():
    """The peers there are, and why others are missing."""
    missing = [package for program, package in (("nginx", "nginx"), ("haproxy", "haproxy")) if not shutil.which(program)]
    from pathlib import Path

    if not Path(STREAM_MODULE).exists():
        missing.append("libnginx-mod-stream")
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        missing.append("python3-pip")
    if missing:
        install(missing)
    others = [Nginx(), Haproxy()]
    try:
        others.append(envoy.Envoy(envoy.program(), BACKEND, SERVICES))
    except RuntimeError as error:
        print(f"skipped: Envoy: {error}")
    print("skipped: Pingora (a library: a proxy of it would be ours)")
    return [*others, Dormouse()]
