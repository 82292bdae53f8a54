use serde_json::{Value, json};

use super::*;

/// A Canary with this analysis, or with other parts of a spec when they are named.
fn canary(spec: &str) -> String {
    let mut text = "apiVersion: flagger.app/v1beta1\nkind: Canary\nmetadata: {name: podinfo, namespace: test}\nspec:\n  \
                    targetRef: {apiVersion: apps/v1, kind: Deployment, name: podinfo}\n"
        .to_owned();
    for line in spec.trim_start_matches('\n').lines() {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

fn only(text: &str) -> Imported {
    let mut imported = import(text).unwrap_or_else(|why| panic!("{why}\n{text}"));
    assert_eq!(imported.len(), 1);
    imported.remove(0)
}

/// Where the notes are.
fn places(one: &Imported) -> Vec<String> {
    let place = |note: &fields::Note| note.to_string().split(": ").next().unwrap_or_default().to_owned();
    one.notes.iter().map(place).collect()
}

/// Documents as people have them, the strategy and analysis that they become, and the fields that have no equivalent.
fn rows() -> Vec<(&'static str, String, Value, Value, Vec<&'static str>)> {
    vec![
        (
            "podinfo's linear steps on Istio",
            canary(
                "
provider: istio
autoscalerRef: {apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, name: podinfo}
service:
  port: 9898
  targetPort: 9898
  gateways: [istio-system/public-gateway]
  hosts: [app.example.com]
  trafficPolicy: {tls: {mode: DISABLE}}
  retries: {attempts: 3, perTryTimeout: 1s, retryOn: gateway-error}
analysis:
  interval: 30s
  threshold: 5
  maxWeight: 50
  stepWeight: 10
  metrics:
    - name: request-success-rate
      thresholdRange: {min: 99}
      interval: 1m
    - name: request-duration
      thresholdRange: {max: 500}
      interval: 30s
  webhooks:
    - name: acceptance-test
      type: pre-rollout
      url: http://flagger-loadtester.test/
      timeout: 30s
      metadata: {type: bash, cmd: \"curl -sd 'test' http://podinfo-canary:9898/token\"}
    - name: load-test
      url: http://flagger-loadtester.test/
      timeout: 5s
      metadata: {cmd: \"hey -z 1m -q 10 -c 2 http://podinfo.test:9898/\", logCmdOutput: true}
",
            ),
            json!({ "type": "Canary", "linear": { "step": 10, "max": 50 } }),
            json!({
                "mode": "Threshold", "interval": "30s", "threshold": 5, "bake": "0s",
                "metrics": [
                    { "name": "request-success-rate", "min": 99.0 },
                    { "name": "request-duration", "max": 500.0 },
                ],
                "webhooks": [
                    {
                        "type": "pre-rollout", "name": "acceptance-test", "url": "http://flagger-loadtester.test/",
                        "timeout": "30s",
                        "metadata": { "type": "bash", "cmd": "curl -sd 'test' http://podinfo-canary:9898/token" },
                    },
                    {
                        "type": "rollout", "name": "load-test", "url": "http://flagger-loadtester.test/", "timeout": "5s",
                        "metadata": { "cmd": "hey -z 1m -q 10 -c 2 http://podinfo.test:9898/", "logCmdOutput": "true" },
                    },
                ],
            }),
            vec![
                "spec.autoscalerRef",
                "spec.provider",
                "spec.service.gateways",
                "spec.service.hosts",
                "spec.service.port",
                "spec.service.retries",
                "spec.service.targetPort",
                "spec.service.trafficPolicy",
                "spec.analysis.metrics[0].interval",
                "spec.analysis.metrics[1].interval",
                "spec.analysis.webhooks[0].metadata",
            ],
        ),
        (
            "listed weights on Linkerd, with what is not set left to Flagger's defaults",
            canary("\nanalysis: {interval: 5s, stepWeights: [1, 2, 10, 80], stepWeightPromotion: 20}\n"),
            json!({ "type": "Canary", "steps": [{ "weight": 1 }, { "weight": 2 }, { "weight": 10 }, { "weight": 80 }] }),
            json!({ "mode": "Threshold", "interval": "10s", "threshold": 1, "bake": "0s" }),
            vec!["spec.analysis.interval", "spec.analysis.stepWeightPromotion"],
        ),
        (
            "blue/green on Kubernetes",
            canary(
                "
provider: kubernetes
progressDeadlineSeconds: 60
service: {port: 9898, portDiscovery: true}
analysis:
  interval: 15s
  threshold: 2
  iterations: 10
  stepWeight: 20
",
            ),
            json!({ "type": "BlueGreen" }),
            json!({ "mode": "Threshold", "interval": "15s", "threshold": 2, "iterations": 10, "bake": "0s" }),
            vec![
                "spec.provider",
                "spec.service.port",
                "spec.service.portDiscovery",
                "spec.analysis.stepWeight",
            ],
        ),
        (
            "A/B by header and cookie, with a match that cannot be said",
            canary(
                "
analysis:
  interval: 1m
  threshold: 10
  iterations: 10
  match:
    - headers: {x-canary: {exact: insider}}
    - headers: {cookie: {regex: \"^(.*?;)?(canary=always)(;.*)?$\"}}
    - headers: {user-agent: {regex: \"(?!.*Chrome).*Safari.*\"}}
",
            ),
            json!({
                "type": "ABTest",
                "match": [
                    { "headers": { "x-canary": { "exact": "insider" } } },
                    { "headers": { "cookie": { "contains": "canary=always" } } },
                ],
            }),
            json!({ "mode": "Threshold", "interval": "1m", "threshold": 10, "iterations": 10, "bake": "0s" }),
            vec!["spec.analysis.match[1].headers.cookie", "spec.analysis.match[2]"],
        ),
        (
            "mirrored first",
            canary(
                "\nanalysis: {interval: 1m, threshold: 5, stepWeight: 20, mirror: true, mirrorWeight: 50}\n",
            ),
            json!({ "type": "Canary", "linear": { "step": 20, "max": 100 }, "mirror": { "percent": 50 } }),
            json!({ "mode": "Threshold", "interval": "1m", "threshold": 5, "bake": "0s" }),
            vec!["spec.analysis.mirror"],
        ),
        (
            "session affinity",
            canary(
                "
analysis:
  interval: 1m
  threshold: 5
  maxWeight: 60
  stepWeight: 20
  sessionAffinity: {cookieName: flagger-cookie, maxAge: 21600, primaryCookieName: p, domain: example.com}
",
            ),
            json!({
                "type": "Canary", "linear": { "step": 20, "max": 60 },
                "sessionAffinity": { "cookie": "flagger-cookie", "maxAge": "21600s" },
            }),
            json!({ "mode": "Threshold", "interval": "1m", "threshold": 5, "bake": "0s" }),
            vec![
                "spec.analysis.sessionAffinity.domain",
                "spec.analysis.sessionAffinity.primaryCookieName",
            ],
        ),
        (
            "nothing is analysed",
            canary(
                "
skipAnalysis: true
revertOnDeletion: true
suspend: true
analysis: {interval: 1m, threshold: 5, stepWeight: 20}
",
            ),
            json!({ "type": "Immediate" }),
            json!({ "mode": "None", "bake": "0s" }),
            vec!["spec.analysis", "spec.revertOnDeletion"],
        ),
    ]
}

#[test]
fn canaries_become_rollouts_and_every_other_field_is_named() {
    for (what, text, strategy, analysis, notes) in rows() {
        let one = only(&text);
        let spec = &one.rollout["spec"];
        assert_eq!(spec["strategy"], strategy, "{what}");
        assert_eq!(spec["analysis"], analysis, "{what}");
        assert_eq!(spec["targetRef"]["name"], "podinfo", "{what}");
        assert_eq!(spec["serviceRef"]["name"], "podinfo", "{what}");
        assert_eq!(
            one.rollout["metadata"],
            json!({ "name": "podinfo", "namespace": "test" })
        );
        assert_eq!(places(&one), notes, "{what}");
    }
}

/// What the API server would refuse must not be written.
#[test]
fn what_is_written_reads_back_as_what_was_meant() {
    for (what, text, ..) in rows() {
        let one = only(&text);
        let written = commented(&one).expect("YAML");
        assert!(
            written.lines().all(|line| line.chars().count() <= WIDTH + 1),
            "{written}"
        );
        let read: Value = serde_saphyr::from_str(written.trim_start_matches("---\n")).expect("YAML");
        assert_eq!(read, one.rollout, "{what}");
        let spec: crds::RolloutSpec = serde_json::from_value(read["spec"].clone()).expect("a spec");
        let durations = [
            &spec.progress_deadline,
            &spec.analysis.interval,
            &spec.analysis.bake,
        ];
        for duration in durations {
            assert!(
                crds::annotation::read_duration(duration).is_ok(),
                "{what}: {duration}"
            );
        }
        for note in &one.notes {
            let words = note.to_string();
            let first = words.split(' ').next().unwrap_or_default();
            assert!(
                written.contains(first) && report(&one).contains(&words),
                "{what}: {words}"
            );
        }
    }
}

const RELATED: &str = "
---
apiVersion: flagger.app/v1beta1
kind: MetricTemplate
metadata: {name: not-found, namespace: test}
spec:
  provider: {type: prometheus, address: \"http://prometheus.monitoring:9090\"}
  query: 100 - sum(rate(requests{namespace=\"{{ namespace }}\",app=\"{{variables.app}}\",x=\"{{ route }}\"}[{{ interval }}]))
---
apiVersion: flagger.app/v1beta1
kind: MetricTemplate
metadata: {name: cloud, namespace: test}
spec: {provider: {type: cloudwatch}, query: '[]'}
---
apiVersion: flagger.app/v1beta1
kind: AlertProvider
metadata: {name: on-call, namespace: test}
spec: {type: slack, channel: general, secretRef: {name: slack-url}}
";

#[test]
fn templates_and_providers_in_the_same_input_are_used() {
    let text = canary(
        "
metricsServer: http://prometheus.istio-system:9090
analysis:
  interval: 1m
  threshold: 5
  stepWeight: 20
  metrics:
    - name: 404s
      templateRef: {name: not-found}
      templateVariables: {app: shop}
      thresholdRange: {max: 5}
      interval: 2m
    - name: cloud
      templateRef: {name: cloud, namespace: test}
      thresholdRange: {max: 5}
    - name: elsewhere
      templateRef: {name: elsewhere, namespace: other}
      thresholdRange: {max: 5}
    - name: old
      threshold: 7
      query: histogram_quantile(0.9, x)
      templateRef: {name: not-found}
  alerts:
    - {name: on-call, severity: error, providerRef: {name: on-call}}
    - {name: nobody, providerRef: {name: nobody, namespace: flagger}}
",
    );
    let one = only(&format!("{text}{RELATED}"));
    let spec = &one.rollout["spec"];
    assert_eq!(
        spec["analysis"]["metrics"],
        json!([
            { "name": "404s", "max": 5.0, "prometheus": {
                "address": "http://prometheus.monitoring:9090", "interval": "2m",
                "query": "100 - sum(rate(requests{namespace=\"test\",app=\"shop\",x=\"{{ route }}\"}[2m]))",
            }},
            { "name": "old", "max": 7.0, "prometheus": {
                "address": "http://prometheus.istio-system:9090", "interval": "1m", "query": "histogram_quantile(0.9, x)",
            }},
        ])
    );
    assert_eq!(
        spec["alerts"],
        json!([{ "severity": "error", "secretRef": { "name": "slack-url" } }])
    );
    assert_eq!(
        places(&one),
        [
            "spec.analysis.alerts[0].name",
            "spec.analysis.alerts[1]",
            "spec.analysis.metrics[0].query",
            "spec.analysis.metrics[1]",
            "spec.analysis.metrics[2]",
            "spec.analysis.metrics[3].templateRef",
        ]
    );
    let notes: Vec<String> = one.notes.iter().map(ToString::to_string).collect();
    assert!(
        notes[2].contains("{{ route }}") && notes[3].contains("cloudwatch"),
        "{notes:?}"
    );
    assert!(
        notes[4].contains("MetricTemplate other/elsewhere into the same file"),
        "{notes:?}"
    );
}

#[test]
fn what_kubectl_prints_is_read() {
    let one = "
apiVersion: v1
kind: List
items:
  - apiVersion: flagger.app/v1beta1
    kind: Canary
    metadata:
      name: podinfo
      namespace: test
      uid: 0-1
      resourceVersion: '7'
      finalizers: [finalizer.flagger.app]
      labels: {team: a}
      annotations: {kubectl.kubernetes.io/last-applied-configuration: '{}', owner: me}
    spec:
      targetRef: {kind: Deployment, name: podinfo}
      service: {name: shop}
      canaryAnalysis: {interval: 1m, stepWeight: 50, colour: blue}
    status: {phase: Succeeded, canaryWeight: 0}
";
    let one = only(one);
    assert_eq!(one.rollout["metadata"]["labels"], json!({ "team": "a" }));
    assert_eq!(one.rollout["spec"]["serviceRef"]["name"], "shop");
    assert_eq!(
        places(&one),
        ["metadata.annotations", "spec.canaryAnalysis.colour"]
    );
    assert!(
        !one.notes[0].to_string().contains("last-applied"),
        "{}",
        one.notes[0]
    );
    let two = format!(
        "{}---\n{}",
        canary("analysis: {stepWeight: 1}"),
        canary("analysis: {stepWeight: 2}")
    );
    assert_eq!(import(&two).expect("two").len(), 2);
}

#[test]
fn what_cannot_be_a_rollout_says_where() {
    for (text, want) in [
        (String::new(), "there is no Canary in it"),
        ("a: [1".to_owned(), "line 1"),
        ("a: 1".to_owned(), "a document has no kind"),
        ("hello".to_owned(), "a document has no kind"),
        ("7".to_owned(), "a document has no kind"),
        ("- kind: Canary".to_owned(), "a document has no kind"),
        ("kind: List\nitems: [1]".to_owned(), "a document has no kind"),
        ("kind: List\nitems: 1".to_owned(), "kind List is not a Canary"),
        (
            "apiVersion: apps/v1\nkind: Deployment\n".to_owned(),
            "kind Deployment is not a Canary",
        ),
        (
            canary("analysis: {stepWeight: 5}").replace("v1beta1", "v1alpha3"),
            "Canary test/podinfo: apiVersion is flagger.app/v1alpha3, allowed: flagger.app/v1beta1",
        ),
        (
            canary("analysis: {stepWeight: 5}").replace("kind: Deployment", "kind: DaemonSet"),
            "spec.targetRef.kind is DaemonSet, allowed: Deployment",
        ),
        (canary("provider: istio"), "spec.analysis is missing"),
        (
            canary("analysis: {interval: 1m}"),
            "spec.analysis.stepWeight, stepWeights and iterations are all missing",
        ),
        (
            canary("analysis: {stepWeight: many}"),
            "spec.analysis.stepWeight is \"many\", allowed: a whole number",
        ),
        (
            canary("analysis: {stepWeights: [5, 500]}"),
            "spec.analysis.stepWeights[1] is 500, allowed: 0 to 100",
        ),
        (
            canary("analysis: {stepWeight: 5, interval: 1 minute}"),
            "spec.analysis.interval is \"1 minute\"",
        ),
        (
            canary("analysis: {stepWeight: 5, metrics: [{thresholdRange: {min: 9}}]}"),
            "spec.analysis.metrics[0].name is missing",
        ),
        (
            canary("analysis: {stepWeight: 5, webhooks: [{name: a, type: sometimes, url: 'http://a'}]}"),
            "spec.analysis.webhooks[0].type is sometimes, allowed: confirm-rollout",
        ),
        (
            canary("analysis: {stepWeight: 5, webhooks: [{name: a}]}"),
            "spec.analysis.webhooks[0].url is missing",
        ),
    ] {
        let why = import(&text).expect_err(&text);
        assert!(why.contains(want), "{why}\n{text}");
    }
}
