"""What a user of podinfo writes."""


def deployment(name, image, faults):
    """`faults`: a folder of the node with podinfo's config.yaml, which a release reads that is told to."""
    container = {
        "name": "podinfo",
        "image": image,
        "ports": [{"name": "http", "containerPort": 9898}],
        # Its random errors are of its probes too.
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 1, "failureThreshold": 10},
        "volumeMounts": [{"name": "config", "mountPath": "/config", "readOnly": True}],
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        "volumes": [{"name": "config", "hostPath": {"path": str(faults), "type": "Directory"}}],
    }
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": pod}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def service(name, captured=True):
    """`captured`: with Dormouse's annotation."""
    ours = {"dormouse.dev/scale-to-zero": "true", "dormouse.dev/keep-alive": "10s"}
    metadata = {"name": name, "annotations": ours if captured else {}}
    spec = {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def rollout(name, strategy, analysis, alerts=()):
    """What a person waits for is made quicker; everything else is the default."""
    spec = {
        "targetRef": {"name": name},
        "serviceRef": {"name": name},
        "strategy": {"minStepDuration": "1s", **strategy},
        "analysis": {"bake": "2s", **analysis},
        "config": {"settle": "1s"},
        "rollback": {"keepWarm": "1s"},
        "alerts": list(alerts),
    }
    return {"apiVersion": "dormouse.dev/v1alpha1", "kind": "Rollout", "metadata": {"name": name}, "spec": spec}


def alert(severity):
    """To whom the Secret `slack` leads."""
    return {"severity": severity, "secretRef": {"name": "slack"}}


def threshold(interval, checks):
    """Flagger's rule, with a look each `interval` seconds."""
    return {
        "mode": "Threshold",
        "interval": f"{interval}s",
        "threshold": checks,
        "metrics": [{"name": "request-success-rate", "min": 99}],
    }
