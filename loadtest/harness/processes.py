"""Processes of a run: started on a core of their own, looked at through /proc, ended by their id."""

import json
import os
import resource
import signal
import subprocess
import threading
import time

TICK = os.sysconf("SC_CLK_TCK")
FILES = 200_000


def open_files():
    """How many files a process may open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def raise_open_files():
    """As far as one may: a connection through a proxy is two files in it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for limit in (FILES, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, hard)))
            return
        except (ValueError, PermissionError):
            continue


class Processes:
    """Everything a run starts, so that all of it ends with the run, however that ends."""

    def __init__(self):
        self.all = []

    def start(self, name, command, core=None, **more):
        process = Process(name, command, core, **more)
        self.all.append(process)
        return process

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.all):
            process.stop()


class Process:
    def __init__(self, name, command, core=None, cwd=None, env=None, log=None):
        self.name = name
        output = open(log, "ab") if log else subprocess.DEVNULL

        def prepare():
            if core is not None:
                os.sched_setaffinity(0, {core % os.cpu_count()})

        self.popen = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
            preexec_fn=prepare, cwd=cwd, env=env, text=True, bufsize=1, start_new_session=True,
        )
        self.lines = []
        self._new_line = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.popen.stdout:
            with self._new_line:
                self.lines.append(line.rstrip("\n"))
                self._new_line.notify_all()
        with self._new_line:
            self._new_line.notify_all()

    @property
    def pid(self):
        return self.popen.pid

    def line(self, number=0, within=30):
        """Its line of that number, once it is there."""
        with self._new_line:
            there = self._new_line.wait_for(lambda: len(self.lines) > number or self.popen.poll() is not None, within)
            if not there or len(self.lines) <= number:
                raise RuntimeError(f"{self.name}: no line {number} within {within} s (exit code {self.popen.poll()})")
            return self.lines[number]

    def write(self, line):
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def tree(self):
        """It and all that descend from it."""
        found, left = [], [self.pid]
        while left:
            pid = left.pop()
            try:
                for task in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{task}/children") as children:
                        left.extend(int(child) for child in children.read().split())
                found.append(pid)
            except OSError:
                continue
        return found

    def cpu(self):
        """User and system time of all its processes, in seconds; a tick is the kernel's, its sums are exact."""
        total = 0
        for pid in self.tree():
            with open(f"/proc/{pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICK

    def memory(self):
        """Resident bytes of all its processes; what they share is counted once (PSS)."""
        total = 0
        for pid in self.tree():
            with open(f"/proc/{pid}/smaps_rollup") as rollup:
                total += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        return total * 1024

    def files(self):
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.tree())

    def signal(self, number):
        try:
            self.popen.send_signal(number)
        except ProcessLookupError:
            pass

    def stop(self, patience=5, first=0):
        """The end of its input, `first` seconds later SIGTERM, then SIGKILL."""
        if self.popen.poll() is not None:
            return
        try:
            self.popen.stdin.close()
        except OSError:
            pass
        try:
            self.popen.wait(first)
            self._reader.join(1)
            return
        except subprocess.TimeoutExpired:
            pass
        for number in (signal.SIGTERM, signal.SIGKILL):
            tree = self.tree()
            self.signal(number)
            try:
                self.popen.wait(patience)
                break
            except subprocess.TimeoutExpired:
                for pid in tree if number == signal.SIGKILL else ():
                    try:
                        os.kill(pid, number)
                    except OSError:
                        pass


def run_json(command, core=None, within=600):
    """Runs a program to its end and reads its output as JSON."""

    def prepare():
        if core is not None:
            os.sched_setaffinity(0, {core % os.cpu_count()})

    done = subprocess.run(
        [str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=within,
        preexec_fn=prepare,
    )
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout[-500:]}") from error


def wait_for_port(address, port, within=10):
    import socket

    end = time.monotonic() + within
    while True:
        try:
            socket.create_connection((address, port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise RuntimeError(f"nothing listens on {address}:{port} within {within} s") from None
            time.sleep(0.02)
