"""Releases of podinfo, good and bad, side by side on a real cluster, with a line of figures for each thing that is proved.

Each Service has a Rollout, a revision that fails or not, and a client of its own:

    ladder      adopted under traffic, then let in by 20, 40, 60, 80 %, as Flagger would
    sequential  a ninth of its answers are bad: taken out by evidence; let in by `retry` once its cause is mended
    threshold   the same release, judged by five failed checks: what that costs
    holding     no traffic, evidence: it waits, and says for what
    quiet       no traffic, five failed checks: taken out
    mirrored    mirrored requests first, then 60 %

and on the way: who may not read the Secret of its alerts says how that is granted, and tells once it may.
"""

import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import sys
import tempfile
import time
import urllib.request

import manifests
from kube import Failed, Rollouts, Space, ensure
from traffic import Receiver, Traffic, answers, failed, of

# Seconds between two looks of Flagger's rule, which its users set to 30. Scaled, so that six of them fit.
LADDER_INTERVAL, BAD_INTERVAL, QUIET_INTERVAL, USUAL_INTERVAL = 6, 8, 2, 30
CHECKS = 5
LADDER = {"linear": {"step": 20, "max": 70}}
# Of a fair coin's counts one in 150,000 is further from its mean.
DEVIATIONS = 4.5
# podinfo's --random-error fails a third of the requests: with 500, 400 or 409, by chance. Only the first counts as bad.
BAD_SHARE = 1 / 9
RATES = {"ladder": 60, "sequential": 80, "threshold": 80, "mirrored": 40}
MIRRORED = 150
# Of 100,000 releases that were simulated as docs/evidence.md is made, at this rate and ladder, none cost more than 8 up to
# the verdict. In the second or two that counting and taking it out may take on a busy machine, four more come.
MOST_BAD = 16


class Acceptance:
    """The namespace, its Rollouts as they are seen, and the clients."""

    def __init__(self, arguments):
        self.space = Space("podinfo-test")
        self.image, self.folder = arguments.image, pathlib.Path(arguments.folder)
        self.receiver = Receiver(arguments.node)
        self.rollouts, self.traffic, self.begun = None, {}, time.monotonic()

    # --- what a user does ---------------------------------------------------------------------------------------------

    def deployment(self, name):
        faults = self.folder / name
        faults.mkdir(parents=True, exist_ok=True)
        (faults / "config.yaml").write_text("random-error: true\n", encoding="utf-8")
        return manifests.deployment(name, self.image, faults)

    def everything(self, name, strategy, analysis, alerts=()):
        rollout = manifests.rollout(name, strategy, analysis, alerts)
        return [self.deployment(name), manifests.service(name), rollout]

    def release(self, name, *environment):
        self.space.kubectl("set", "env", f"deployment/{name}", *environment)

    def ask(self, name):
        """A client of a Service, from now on. kube-proxy takes a moment to know a Service's first pod."""
        address = self.space.get("service", name)["spec"]["clusterIP"]
        self.space.eventually(f"{name} answers", 20, lambda: answers(address))
        self.traffic[name] = Traffic(address, 80, RATES[name])
        return self.traffic[name]

    # --- what is looked at --------------------------------------------------------------------------------------------

    def mix(self, name, revision, begun):
        """How the answers were divided at each share, as text; fails when a coin of that weight does not do that."""
        told = []
        for percent, since, until in self.rollouts.stands(name, begun):
            # What has been sent in the last moment may have met the next share, which is written before it is seen.
            met = self.traffic[name].between(since, until - 0.3)
            share, count = percent / 100, len(met)
            if not 0 < share < 1 or count < 50:
                continue
            seen = len(of(met, revision))
            away = abs(seen - share * count)
            ensure(
                away <= DEVIATIONS * math.sqrt(count * share * (1 - share)) + 1,
                f"{name}: {seen} of {count} answers are the candidate's at {percent:g} %",
            )
            told.append(f"{percent:g} %: {100 * seen / count:.1f} % of {count}")
        return told

    def all_of(self, name, revision):
        """Whether a revision alone has answered for the last second."""
        met = self.traffic[name].between(time.monotonic() - 1)
        return met and len(of(met, revision)) == len(met)

    def taken_out(self, name, status, stable):
        """All traffic is the stable revision's, and the candidate's pods go."""
        candidate = status["attempt"]["candidate"]
        ensure(status["phase"] == "Failed" and status["stableRevision"] == stable, status)
        ensure(candidate in status.get("quarantined", []), status)
        self.space.eventually(f"{stable} has everything", 20, lambda: self.weights(name).get(stable) == 10_000)
        self.space.eventually(f"{candidate} is scaled down", 45, lambda: self.replicas(candidate) == 0)
        shown = self.space.dormouse("rollout", "get", name)
        ensure("Failed" in shown and f"rollout retry {name}" in shown, shown)
        return candidate

    def generation(self, deployment):
        """Of what a user wrote: of the template, while the Deployment stays at zero."""
        return self.space.get("deployment", deployment)["metadata"]["generation"]

    def weights(self, name):
        return {pool["name"]: pool["weight"] for pool in self.space.get("route", name)["spec"]["pools"]}

    def replicas(self, deployment):
        status = self.space.get("deployment", deployment)
        return max(status["spec"].get("replicas", 1), status["status"].get("replicas", 0))

    # --- adoption -----------------------------------------------------------------------------------------------------

    def begin(self):
        """Everything is deployed; `ladder` without Dormouse, as what has been there for years."""
        self.space.kubectl("create", "secret", "generic", "slack", f"--from-literal=address={self.receiver.url}")
        self.space.apply(self.deployment("ladder"), manifests.service("ladder", captured=False))
        paced = {**LADDER, "minStepDuration": f"{BAD_INTERVAL}s"}
        mirror = {"steps": [{"weight": 60, "pause": "9s"}], "mirror": {"percent": 100, "requests": MIRRORED}}
        self.space.apply(
            *self.everything("sequential", paced, {}, [manifests.alert("error")]),
            *self.everything("threshold", LADDER, manifests.threshold(BAD_INTERVAL, CHECKS)),
            *self.everything("holding", {}, {}),
            *self.everything("quiet", LADDER, manifests.threshold(QUIET_INTERVAL, CHECKS)),
            *self.everything("mirrored", mirror, {}),
        )
        self.rollouts = Rollouts(self.space)
        self.space.kubectl("rollout", "status", "deployment/ladder", "--timeout=60s")

    def first_release(self):
        """Adopted without analysis, and nobody notices."""
        traffic, begun = self.ask("ladder"), time.monotonic()
        time.sleep(1)
        judged = manifests.threshold(LADDER_INTERVAL, CHECKS)
        rollout = manifests.rollout("ladder", LADDER, judged, [manifests.alert("info")])
        self.space.apply(manifests.service("ladder"), rollout)
        status = self.rollouts.wait_adopted("ladder")
        took = time.monotonic() - begun
        self.space.eventually("the Deployment is a template at zero", 30, lambda: self.replicas("ladder") == 0)
        ensure(not status.get("weight") and not status.get("attempts") and "evidence" not in status, status)
        told = self.space.events("ladder")
        ensure([reason for reason, _ in told][:1] == ["Initialized"], f"Events {told}")
        stable = status["stableRevision"]
        # Connections from before go on to the pod that they are with, until it ends.
        self.space.eventually(f"{stable} answers everything", 30, lambda: self.all_of("ladder", stable))
        seen = traffic.between()
        bad = [answer for answer in seen if answer.status != 200]
        ensure(not bad, f"{len(bad)} of {len(seen)} requests failed while adopted: {bad[:3]}")
        own = of(seen, stable)
        for name in ("sequential", "threshold", "holding", "quiet", "mirrored"):
            self.rollouts.wait_adopted(name)
        self.cannot_be_moved("ladder")
        counts = f"{len(seen)} requests, none failed, {len(own)} by its pool"
        return f"adopted in {took:.1f} s, no analysis, {told[0]}; {counts}"

    def cannot_be_moved(self, name):
        """To another Deployment or Service: half of it would stay behind. The API server says what to do."""
        for field in ("targetRef", "serviceRef"):
            patch = json.dumps({"spec": {field: {"name": "another"}}})
            try:
                self.space.kubectl("patch", "rollout", name, "--type=merge", "-p", patch)
            except Failed as refused:
                ensure("never change" in str(refused), f"{field}: {refused}")
            else:
                raise Failed(f"{field} of {name} could be changed")

    # --- the ladder ---------------------------------------------------------------------------------------------------

    def ladder(self):
        """20, 40, 60, 80 %, everything."""
        begun, before = time.monotonic(), self.rollouts.seen("ladder")[-1][1]["stableRevision"]
        self.space.kubectl("set", "image", "deployment/ladder", f"podinfo={self.image}-again")
        going = self.rollouts.wait("ladder", "a candidate", 30, lambda status: status.get("candidateRevision"))
        self.space.kubectl("wait", "rollout/ladder", "--for=condition=Promoted", "--timeout=90s")
        status = self.rollouts.wait_result("ladder", "Promoted", 20)
        ensure(status["stableRevision"] == going["candidateRevision"], status)
        mix = self.mix("ladder", status["stableRevision"], begun)
        weights = [percent for percent, _, _ in self.rollouts.stands("ladder", begun) if percent < 100]
        ensure(weights == [20, 40, 60, 80] and len(mix) == 4, f"weights {weights}, {mix}")
        self.space.eventually("it answers everything", 20, lambda: self.all_of("ladder", status["stableRevision"]))
        bad = [answer for answer in self.traffic["ladder"].between(begun) if answer.status != 200]
        ensure(not bad, f"{len(bad)} requests failed: {bad[:3]}")
        ensure(status["history"] == [before], status)
        return f"{', '.join(mix)}; then everything, promoted after {time.monotonic() - begun:.0f} s, no request failed"

    # --- bad releases -------------------------------------------------------------------------------------------------

    def bad_release(self, name, limit):
        """Releases what fails a ninth; returns the status, what failed, and how long it took from its first share on."""
        traffic, stable = self.traffic[name], self.rollouts.seen(name)[-1][1]["stableRevision"]
        self.release(name, "PODINFO_CONFIG_PATH=/config")
        status = self.rollouts.wait_result(name, "RolledBack", limit)
        out = time.monotonic()
        self.taken_out(name, status, stable)
        time.sleep(1)
        bad = failed(traffic.between())
        late = [answer for answer in bad if answer.sent > out]
        ensure(not late, f"{name}: it still has requests {late[:3]}")
        broken = [answer for answer in bad if answer.status != 500]
        ensure(not broken, f"{name}: not podinfo's own failures: {broken[:3]}")
        spans = self.rollouts.stands(name)
        return status, bad, out - spans[0][1] if spans else 0.0

    def partly_bad(self):
        """A bad one by evidence, then `retry`."""
        status, bad, took = self.bad_release("sequential", 60)
        attempt = status["attempt"]
        ensure("evidence" in attempt["why"], attempt)
        evidence = status["evidence"]
        alert = self.space.eventually("its alert", 20, lambda: self.receiver.about("sequential"))
        ensure(len(alert) == 1 and attempt["candidate"] in alert[0], f"alerts {alert}")
        written = self.generation("sequential")
        # The cause goes, the template stays.
        (self.folder / "sequential" / "config.yaml").write_text("random-error: false\n", encoding="utf-8")
        begun = time.monotonic()
        answer = self.space.dormouse("rollout", "retry", "sequential").strip()
        again = self.rollouts.wait_result("sequential", "Promoted", 90, before=attempt["uid"])
        ensure(again["stableRevision"] == attempt["candidate"], again)
        ensure(self.generation("sequential") == written, "the template was changed")
        since = [each for each in self.traffic["sequential"].between(begun) if each.status != 200]
        ensure(not since, f"{len(since)} requests failed after the retry: {since[:3]}")
        counts = f"{evidence['bad'][1]} of {evidence['requests'][1]} of the candidate's by the status"
        took_again = time.monotonic() - begun
        retried = f"retry: {answer!r}: {again['stableRevision']} promoted after {took_again:.0f} s, no request failed"
        return len(bad), f"evidence: {len(bad)} failed ({counts}) in {took:.1f} s", retried, alert[0]

    def by_threshold(self):
        """The same by five failed checks."""
        status, bad, took = self.bad_release("threshold", 6 * BAD_INTERVAL + 45)
        ensure(status["attempt"]["ticks"]["failedChecks"] == CHECKS, status)
        # The first look is an interval after the first share, and the one after the last failure takes it out.
        mean = 0.2 * RATES["threshold"] * BAD_SHARE * (CHECKS + 1) * BAD_INTERVAL
        ensure(abs(len(bad) - mean) < DEVIATIONS * math.sqrt(mean), f"{len(bad)} failed, {mean:.0f} are to be expected")
        return len(bad), f"{CHECKS} failed checks, {BAD_INTERVAL} s apart: {len(bad)} failed in {took:.1f} s"

    # --- no traffic ---------------------------------------------------------------------------------------------------

    def no_traffic(self):
        """Without a request evidence holds, and a threshold takes it for failure."""
        stable = self.rollouts.seen("quiet")[-1][1]["stableRevision"]
        for name in ("holding", "quiet"):
            self.release(name, "PODINFO_UI_MESSAGE=second")
        holding = self.rollouts.wait("holding", "its first share", 60, lambda status: status.get("weight") == "5%")
        quiet = self.rollouts.wait_result("quiet", "RolledBack", 6 * QUIET_INTERVAL + 45)
        [measured] = quiet["attempt"]["measurements"]
        ensure(quiet["attempt"]["ticks"]["failedChecks"] == CHECKS and "no values" in measured["why"], quiet)
        self.taken_out("quiet", quiet, stable)
        status = self.rollouts.seen("holding")[-1][1]
        ensure(status.get("weight") == "5%" and status["candidateRevision"] == holding["candidateRevision"], status)
        ensure("more good ones let it in" in status["why"], status)
        held = f"evidence holds as long: {status['phase']}, {status['why']!r}"
        return f"no traffic: {CHECKS} failed checks take it out, {measured['why']!r}; {held}"

    # --- mirroring ----------------------------------------------------------------------------------------------------

    def mirrored(self):
        """The candidate is seen by nobody while it answers copies; then it has 60 %."""
        begun = time.monotonic()
        self.release("mirrored", "PODINFO_UI_MESSAGE=second")
        self.rollouts.wait("mirrored", "mirrored requests", 60, lambda status: status["phase"] == "Mirroring")
        status = self.rollouts.wait("mirrored", "its share", 60, lambda status: status.get("weight") == "60%")
        shifted = [at for at, each in self.rollouts.seen("mirrored") if each.get("weight") == "60%"][0]
        candidate = status["candidateRevision"]
        traffic = self.traffic["mirrored"]
        # The first users have met it by now.
        copies = -len(of(traffic.between(), candidate)) + self.answered(candidate)
        before = traffic.between(begun, shifted - 0.3)
        ensure(not of(before, candidate), "users saw the candidate while it was mirrored to")
        ensure(copies >= MIRRORED, f"podinfo counted {copies} requests, {MIRRORED} were to be mirrored")
        done = self.rollouts.wait_result("mirrored", "Promoted", 90)
        mix = self.mix("mirrored", candidate, begun)
        ensure(done["stableRevision"] == candidate and len(mix) == 1 and mix[0].startswith("60 %"), f"{mix}, {done}")
        bad = [answer for answer in traffic.between(begun) if answer.status != 200]
        ensure(not bad, f"{len(bad)} requests failed: {bad[:3]}")
        hidden = f"{copies} copies answered, by podinfo's metrics, none of {len(before)} requests of users"
        return f"mirrored: {hidden}; then {mix[0]}; promoted"

    def answered(self, revision):
        """How many requests of users a revision's pods have answered, by podinfo's own metrics."""
        of_it = f"--selector=dormouse.dev/revision={revision}"
        pods = json.loads(self.space.kubectl("get", "pods", of_it, "-o", "json"))
        total = 0
        for pod in pods["items"]:
            with urllib.request.urlopen(f"http://{pod['status']['podIP']}:9898/metrics", timeout=5) as page:
                for line in page.read().decode().splitlines():
                    if line.startswith('http_request_duration_seconds_count{method="GET",path="api_info"'):
                        total += int(float(line.split()[-1]))
        return total

    # --- alerts -------------------------------------------------------------------------------------------------------

    def not_granted(self):
        """Without the Role nothing is told, and what is missing is."""
        why = self.rollouts.wait_condition("ladder", "AlertsDelivered", "False")
        ensure("manifests/components/alerts" in why, why)
        shown = self.space.dormouse("explain", "ladder")
        ensure("manifests/components/alerts" in shown, f"explain does not say how it is granted:\n{shown}")
        told = self.space.events("ladder")
        ensure(any(reason == "AlertNotSent" for reason, _ in told), f"Events {told}")
        ensure(not self.receiver.texts, f"alerts {self.receiver.texts}")
        return why

    def grant(self):
        """As docs/checks.md says: the component, from a kustomization of the namespace."""
        component = pathlib.Path(__file__).resolve().parents[3] / "manifests/components/alerts"
        with tempfile.TemporaryDirectory() as folder:
            # kustomize knows no absolute folders.
            relative = os.path.relpath(component, os.path.realpath(folder))
            text = f"namespace: {self.space.name}\ncomponents: [{relative}]\n"
            pathlib.Path(folder, "kustomization.yaml").write_text(text, encoding="utf-8")
            self.space.kubectl("apply", "-k", folder)

    def granted(self, why):
        texts = self.receiver.about("ladder")
        [new, promoted] = texts if len(texts) == 2 else ["", ""]
        ensure("New revision" in new and "is stable" in promoted, f"alerts of ladder: {texts}")
        still = self.rollouts.wait_condition("ladder", "AlertsDelivered", "True")
        ensure(not still, still)
        return f"alerts: without the Role {why!r}; with it {texts}"

    # --- all of it ----------------------------------------------------------------------------------------------------

    def run(self):
        self.end()  # what a crash may have left
        self.space.kubectl("create", "namespace", self.space.name)
        self.begin()
        print(self.first_release())
        why = self.not_granted()
        self.grant()
        for name in RATES.keys() - self.traffic.keys():
            self.ask(name)
        time.sleep(2)
        parts = [self.ladder, self.partly_bad, self.by_threshold, self.no_traffic, self.mirrored]
        with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
            under_way = [pool.submit(part) for part in parts]
        wrong = [f"{part.__name__}: {each.exception()}" for part, each in zip(parts, under_way) if each.exception()]
        ensure(not wrong, "\n".join(wrong))
        ladder, (cost, evidence, retried, alert), (usual, checks), quiet, mirrored = [each.result() for each in under_way]
        for line in (ladder, compare(cost, evidence, usual, checks), quiet, mirrored, retried):
            print(line)
        print(self.granted(why) + f" and {alert!r}")
        others = [answer for name in self.traffic for answer in self.traffic[name].stop()]
        broken = [answer for answer in others if answer.status == 0 or answer.status > 500]
        ensure(not broken, f"{len(broken)} of {len(others)} requests were not answered by podinfo: {broken[:3]}")
        print(f"{len(others)} requests in all, each answered by podinfo, within {time.monotonic() - self.begun:.0f} s")

    def end(self):
        for traffic in self.traffic.values():
            traffic.stop()
        if self.rollouts:
            self.rollouts.stop()
        self.space.kubectl("delete", "namespace", self.space.name, "--ignore-not-found", "--timeout=90s")


def compare(cost, evidence, usual, checks):
    """What fixed checks cost beside evidence. Between looks twice as far apart twice as many fail, while evidence counts requests and no time."""
    here, as_usual = (factor * usual / max(cost, 1) for factor in (1, USUAL_INTERVAL / BAD_INTERVAL))
    told = f"a ninth bad: {evidence}; {checks}: {here:.0f} times as many, {as_usual:.0f} times at {USUAL_INTERVAL} s"
    ensure(cost <= MOST_BAD and as_usual >= 10, told)
    return told


def main():
    parser = argparse.ArgumentParser()
    for option in ("--image", "--node", "--folder"):
        parser.add_argument(option, required=True)
    acceptance, begun = Acceptance(parser.parse_args()), time.monotonic()
    try:
        acceptance.run()
        code = 0
    except Failed as failure:
        print(f"failed: {failure}")
        code = 1
    finally:
        acceptance.end()
    print(f"{time.monotonic() - begun:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
