"""An activator as shipped, fed with Routes and pods by hand (activator/examples/fed.rs)."""

import json
import subprocess
from pathlib import Path

from .processes import wait_for_port

ROOT = Path(__file__).resolve().parents[2]


def build(profile="release", extra=()):
    """Builds what a run needs, and the programs of `extra` packages. Returns the folder of binaries."""
    flags = ["--profile", {"debug": "dev"}.get(profile, profile)]
    chosen = [word for package in ("dormouse-activator", "dormouse-loadtest", *extra) for word in ("-p", package)]
    # As `cargo test --workspace` builds them: with other packages libraries have other features, and are compiled once more.
    if profile == "debug":
        chosen = ["--workspace"]
    subprocess.run(["cargo", "build", "--quiet", *chosen, "--bins", "--examples", *flags], cwd=ROOT, check=True)
    metadata = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--format-version", "1"], cwd=ROOT, check=True, capture_output=True
    )
    return Path(json.loads(metadata.stdout)["target_directory"]) / profile


class Fed:
    """One activator, and what it has been told."""

    def __init__(self, processes, binaries, core=None, report_port=21001, admin_port=21000, reports=True, flags=(), log=None,
                 reports_core=None):
        self.address, self.admin_port, self.generation = "127.0.0.1", admin_port, {}
        program = binaries / "examples" / "fed"
        self.process = processes.start(
            "activator",
            [program, "serve", "--bind", self.address, "--name", "one", "--report-port", report_port, "--admin-port",
             admin_port, "--report-auth", "off", "--max-connections", 200_000, *flags],
            core=core, log=log,
        )
        self.process.line()
        wait_for_port(self.address, report_port)
        self.reports = None
        if reports:
            self.reports = processes.start("reports", [program, "reports", f"{self.address}:{report_port}"], core=reports_core)
            self.reports.line()

    def event(self, kind, thing):
        self.process.write(json.dumps({"type": kind, "object": thing}))

    def route(self, name, listen, pods=(), wait=True, protocol="http", h2c=False, probe="Tcp", **spec):
        """A Route with one pool of its own name, and pods as (address, port)."""
        self.generation[name] = self.generation.get(name, 0) + 1
        port = {"port": 80, "listen": listen, "protocol": protocol, "h2c": h2c}
        pool = {
            "name": name, "weight": 10_000, "workload": {"kind": "Deployment", "name": name}, "probe": {"kind": probe},
            **spec.pop("pool", {}),
        }
        self.event("MODIFIED", {
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "Route",
            "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "generation": self.generation[name]},
            "spec": {"ports": [port], "pools": [pool], "queueLimit": 100_000, "coldStartTimeoutMs": 600_000, **spec},
        })
        if pods:
            self.pods(name, listen, pods)
        if wait:
            wait_for_port(self.address, listen)

    def forget(self, name):
        self.event("DELETED", {
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "Route",
            "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "generation": self.generation[name]},
            "spec": {},
        })

    def pods(self, pool, listen, pods, serving=True, terminating=False, slice_name=None):
        """One slice of the pool; pods are (address, port), all with the same port."""
        port = pods[0][1] if pods else 1
        self.event("MODIFIED", {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": slice_name or f"{pool}-x", "namespace": "default", "labels": {"dormouse.dev/pool": pool}},
            "endpoints": [
                {"addresses": [address], "conditions": {"ready": True, "serving": serving, "terminating": terminating}}
                for address, _ in pods
            ],
            "ports": [{"name": f"p{listen}", "port": port}],
        })

    def no_slice(self, pool, slice_name=None):
        self.event("DELETED", {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [],
            "metadata": {"name": slice_name or f"{pool}-x", "namespace": "default", "labels": {"dormouse.dev/pool": pool}},
        })

    def metrics(self):
        """Samples of /metrics as {name{labels}: value}."""
        import urllib.request

        with urllib.request.urlopen(f"http://{self.address}:{self.admin_port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line and line[0] != "#")}
