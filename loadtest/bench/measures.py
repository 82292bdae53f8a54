"""What is measured, and how. Each measure is taken of one proxy at a time and gives numbers by name."""

import time

from harness.processes import run_json

# Costs (CPU) are per request, measured while the proxy is asked as fast as the other core can.
COSTS = {
    "http c16": dict(connections=16),
    "http c256": dict(connections=256),
    "churn c16": dict(connections=16, fresh=True),
    "64 KiB c64": dict(connections=64, path="/64k"),
    "10 MiB c4": dict(connections=4, path="/10m"),
}
H2C = "h2c c8 m16"
TCP = "tcp c4"
RATE = 2000
# In the order of the report: (measure, its key, what a unit is).
UNITS = {name: "CPU µs per request" for name in (*COSTS, H2C)} | {
    TCP: "GB per CPU second",
    "added p50": f"µs at {RATE} requests/s",
    "added p99": f"µs at {RATE} requests/s",
    "added p99.9": f"µs at {RATE} requests/s",
    "idle connection": "bytes",
    "in flight": "bytes, with both connections",
    "held": "bytes, with its connection",
}


class Tools:
    """Where programs are, on which core they run, and for how long."""

    def __init__(self, binaries, proxy_core, other_core, seconds, connections):
        self.binaries, self.proxy_core, self.other_core = binaries, proxy_core, other_core
        self.seconds, self.connections = seconds, connections
        self.wire = binaries / "examples" / "wire"
        self.loadtest = binaries / "dormouse-loadtest"


def cost(tools, proxy, ports, name):
    """CPU of a proxy per request, in microseconds. All its processes, user and system."""
    if name == H2C:
        command = [tools.loadtest, f"http://127.0.0.1:{ports['h2c']}/", "--h2c", "--h2-connections", 8, "--clients", 128,
                   "--duration", f"{tools.seconds}s", "-o", "json"]
    else:
        how = COSTS[name]
        command = [tools.wire, "get", f"127.0.0.1:{ports['http']}", how.get("path", "/"), "--connections",
                   how["connections"], "--seconds", tools.seconds, *(["--fresh"] if how.get("fresh") else [])]
    before = proxy.cpu()
    result = run_json(command, tools.other_core)
    used = proxy.cpu() - before
    answers, errors = result.get("answers", result.get("ok")), result.get("errors", result.get("failed"))
    if name == H2C:
        errors = result["failed"]
    if errors:
        raise RuntimeError(f"{name} at {proxy.name}: {errors} of {answers} failed: "
                           f"{result.get('firstError') or result.get('firstErrors')}")
    return {name: used * 1e6 / answers, f"{name} requests/s": answers / tools.seconds}


def throughput(tools, proxy, ports):
    """Bytes from a server to clients through a proxy, in GB for a second of its CPU."""
    before = proxy.cpu()
    result = run_json([tools.wire, "bulk", f"127.0.0.1:{ports['tcp']}", "--connections", 4, "--seconds", tools.seconds],
                      tools.other_core)
    return {TCP: result["bytes"] / 1e9 / (proxy.cpu() - before), f"{TCP} GB/s": result["bytes"] / 1e9 / result["seconds"]}


def latency(tools, port):
    """Due time to last byte in an open loop, in microseconds."""
    result = run_json([tools.loadtest, f"http://127.0.0.1:{port}/", "--rate", RATE, "--duration", f"{tools.seconds}s", "-o",
                       "json"], tools.other_core)
    if result["failed"]:
        raise RuntimeError(f"latency at port {port}: {result['failed']} failed: {result['firstErrors']}")
    spread = result["latencyMs"]
    return {"p50": spread["p50"] * 1e3, "p99": spread["p99"] * 1e3, "p99.9": spread["p999"] * 1e3}


def memory(tools, processes, proxy, port, name, after):
    """What a connection takes in a proxy that has just started, in bytes. The kernel's buffers are not in it."""
    time.sleep(0.5)
    before = proxy.memory()
    client = processes.start("connections", [tools.wire, "open", f"127.0.0.1:{port}", "--connections", tools.connections,
                                             "--after", after], tools.other_core)
    client.line(within=120)
    time.sleep(1.5)
    used = proxy.memory() - before
    client.stop()
    return {name: used / tools.connections}
