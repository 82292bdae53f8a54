"""What the acceptance asks the cluster for: through `kubectl` and `dormouse`, as a user would."""

import json
import os
import subprocess
import threading
import time

CLI = os.environ["DORMOUSE_CLI"]


class Failed(Exception):
    """What was looked for is not there; the text says what was seen."""


def ensure(condition, seen):
    """Fails with what was seen."""
    if not condition:
        raise Failed(seen if isinstance(seen, str) else json.dumps(seen, indent=1))


def command(*words, stdin=None, limit=120):
    """Runs a command and returns what it prints; fails with all that it said."""
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=limit, check=False)
    ensure(done.returncode == 0, f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Space:
    """A namespace of its own."""

    def __init__(self, name):
        self.name = name

    def kubectl(self, *words, stdin=None, limit=120):
        return command("kubectl", "-n", self.name, *words, stdin=stdin, limit=limit)

    def dormouse(self, *words):
        return command(CLI, *words, "-n", self.name)

    def apply(self, *objects):
        """JSON is YAML."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        return self.kubectl("apply", "-f", "-", stdin=json.dumps(listed))

    def get(self, kind, name):
        return json.loads(self.kubectl("get", kind, name, "-o", "json"))

    def events(self, name):
        """Reasons and texts of the Events about a Rollout, in the order in which they happened."""
        items = json.loads(self.kubectl("get", "events.events.k8s.io", "-o", "json"))["items"]
        about = [item for item in items if item["regarding"]["kind"] == "Rollout" and item["regarding"]["name"] == name]
        about.sort(key=lambda item: item["eventTime"])
        return [(item["reason"], item.get("note", "")) for item in about]

    def eventually(self, what, limit, ask):
        """The first true answer; fails with the last one."""
        deadline = time.monotonic() + limit
        while not (answer := ask()):
            ensure(time.monotonic() < deadline, f"waited {limit} s in vain: {what}")
            time.sleep(0.2)
        return answer


class Rollouts:
    """Every status of every Rollout of a namespace, with the moment in which it was seen: `kubectl get rollouts -w`."""

    def __init__(self, space):
        self.changed = threading.Condition()
        self.history = {}
        words = ["kubectl", "-n", space.name, "get", "rollouts", "--watch", "-o", "json"]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line != "}\n":
                continue
            rollout = json.loads("".join(lines))
            lines.clear()
            with self.changed:
                seen = self.history.setdefault(rollout["metadata"]["name"], [])
                seen.append((time.monotonic(), rollout.get("status", {})))
                self.changed.notify_all()

    def seen(self, name):
        with self.changed:
            return list(self.history.get(name, []))

    def wait(self, name, what, limit, check):
        """The present status, once it satisfies `check`."""
        deadline = time.monotonic() + limit
        with self.changed:
            while True:
                seen = self.history.get(name, [])
                if seen and check(seen[-1][1]):
                    return seen[-1][1]
                left = deadline - time.monotonic()
                last = seen[-1][1] if seen else None
                ensure(left > 0, f"{name}: waited {limit} s in vain: {what}; it is {json.dumps(last, indent=1)}")
                self.changed.wait(left)

    def wait_adopted(self, name):
        def adopted(status):
            return status.get("adopted") and status["phase"] == "Idle"

        return self.wait(name, "the first revision is adopted", 60, adopted)

    def wait_condition(self, name, kind, value):
        """The message of a condition, once it has this value."""

        def found(status):
            of_kind = (each for each in status.get("conditions", []) if each["type"] == kind)
            return next((each for each in of_kind if each["status"] == value), None)

        return found(self.wait(name, f"{kind} {value}", 30, found))["message"]

    def wait_result(self, name, result, limit, before=""):
        """The status at the end of an attempt other than `before`."""

        def ended(status):
            attempt = status.get("attempt", {})
            over = status["phase"] in ("Idle", "Failed") and attempt.get("uid") != before
            return over and attempt.get("result") == result

        return self.wait(name, result, limit, ended)

    def stands(self, name, begun=0.0):
        """From when to when the candidate had which share on every activator: (percent, from, to), since `begun`."""
        spans, seen = [], [each for each in self.seen(name) if each[0] >= begun]
        for number, (at, status) in enumerate(seen):
            weight = status.get("weight", "")
            if weight in ("", "0%") or status.get("step", {}).get("ackedBp") is None:
                continue
            percent = float(weight.removesuffix("%"))
            if round(percent * 100) != status["step"]["ackedBp"]:
                continue
            until = seen[number + 1][0] if number + 1 < len(seen) else time.monotonic()
            if spans and spans[-1][0] == percent and spans[-1][2] == at:
                spans[-1] = (percent, spans[-1][1], until)
            else:
                spans.append((percent, at, until))
        return spans

    def stop(self):
        self.process.terminate()
        self.process.wait()
