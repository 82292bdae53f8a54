//! Defaults, and what is refused.

use anyhow::ensure;
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{blamed, deployment_json, raw, refused, service, table};

table!("validation":
    service_gets_an_address_and_defaults,
    service_without_address_is_headless,
    service_address_cannot_change,
    service_with_two_ports_needs_names,
    service_needs_ports,
    service_names_start_with_a_letter,
    deployment_gets_defaults,
    deployment_selector_must_match,
    deployment_selector_is_immutable,
    deployment_needs_a_selector_and_a_container,
    deployment_probe_gets_defaults,
    slice_address_type_is_immutable,
    slice_addresses_must_fit_their_type,
    names_are_checked,
    labels_are_checked,
    a_wrong_type_is_a_bad_request,
    a_wrong_kind_is_a_bad_request,
    secret_data_must_be_base64,
);

async fn service_gets_an_address_and_defaults(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<Service> = Api::namespaced(client, &ns);
    let made = api
        .create(
            &PostParams::default(),
            &service("s", json!({ "ports": [{ "port": 80 }] }))?,
        )
        .await?;
    let spec = serde_json::to_value(made.spec)?;
    ensure!(
        spec["clusterIP"]
            .as_str()
            .is_some_and(|it| it.parse::<std::net::IpAddr>().is_ok()),
        "{spec}"
    );
    ensure!(spec["clusterIPs"] == json!([spec["clusterIP"]]), "{spec}");
    ensure!(
        spec["ports"] == json!([{ "port": 80, "protocol": "TCP", "targetPort": 80 }]),
        "{spec}"
    );
    ensure!(
        spec["type"] == "ClusterIP" && spec["sessionAffinity"] == "None",
        "{spec}"
    );
    ensure!(
        spec["internalTrafficPolicy"] == "Cluster" && spec["ipFamilyPolicy"] == "SingleStack",
        "{spec}"
    );
    Ok(())
}

async fn service_without_address_is_headless(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<Service> = Api::namespaced(client, &ns);
    let spec = json!({ "clusterIP": "None", "selector": { "a": "b" } });
    let made = api.create(&PostParams::default(), &service("s", spec)?).await?;
    ensure!(
        made.spec
            .is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
    );
    Ok(())
}

async fn service_address_cannot_change(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<Service> = Api::namespaced(client, &ns);
    api.create(
        &PostParams::default(),
        &service("s", json!({ "ports": [{ "port": 80 }] }))?,
    )
    .await?;
    let patch = Patch::Merge(json!({ "spec": { "clusterIP": "None", "clusterIPs": ["None"] } }));
    refused(api.patch("s", &PatchParams::default(), &patch).await, 422)?;
    Ok(())
}

async fn service_with_two_ports_needs_names(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<Service> = Api::namespaced(client, &ns);
    let object = service("s", json!({ "ports": [{ "port": 80 }, { "port": 81 }] }))?;
    let status = refused(api.create(&PostParams::default(), &object).await, 422)?;
    ensure!(
        blamed(&status).contains(&"spec.ports[0].name".to_owned()),
        "{status:?}"
    );
    Ok(())
}

async fn service_needs_ports(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<Service> = Api::namespaced(client, &ns);
    let status = refused(
        api.create(&PostParams::default(), &service("s", json!({}))?)
            .await,
        422,
    )?;
    ensure!(blamed(&status) == ["spec.ports"], "{status:?}");
    Ok(())
}

async fn service_names_start_with_a_letter(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<Service> = Api::namespaced(client, &ns);
    let object = service("1s", json!({ "clusterIP": "None" }))?;
    match api.create(&PostParams::default(), &object).await {
        // Kubernetes 1.35 may be set to allow it.
        Ok(_) => {}
        other => ensure!(blamed(&*refused(other, 422)?) == ["metadata.name"]),
    }
    Ok(())
}

fn deployments(ns: &str) -> String {
    format!("/apis/apps/v1/namespaces/{ns}/deployments")
}

async fn deployment_gets_defaults(client: Client, ns: String) -> anyhow::Result<()> {
    let mut body = deployment_json("a");
    body["spec"]["replicas"] = Value::Null;
    // Paused and without a usable image: one pod at most is made on a real cluster, none here.
    body["spec"]["paused"] = json!(true);
    let made = raw(
        &client,
        "POST",
        &format!("{}?dryRun=All", deployments(&ns)),
        Some(body),
    )
    .await?;
    let spec = &made["spec"];
    ensure!(
        spec["replicas"] == 1 && spec["revisionHistoryLimit"] == 10,
        "{spec}"
    );
    ensure!(spec["progressDeadlineSeconds"] == 600, "{spec}");
    let rolling =
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" } });
    ensure!(spec["strategy"] == rolling, "{spec}");
    let pod = &spec["template"]["spec"];
    ensure!(
        pod["restartPolicy"] == "Always" && pod["terminationGracePeriodSeconds"] == 30,
        "{pod}"
    );
    ensure!(pod["containers"][0]["imagePullPolicy"] == "IfNotPresent", "{pod}");
    Ok(())
}

async fn deployment_selector_must_match(client: Client, ns: String) -> anyhow::Result<()> {
    let mut body = deployment_json("a");
    body["spec"]["selector"]["matchLabels"]["app"] = json!("other");
    let status = refused(raw(&client, "POST", &deployments(&ns), Some(body)).await, 422)?;
    ensure!(
        blamed(&status).contains(&"spec.template.metadata.labels".to_owned()),
        "{status:?}"
    );
    Ok(())
}

async fn deployment_selector_is_immutable(client: Client, ns: String) -> anyhow::Result<()> {
    let mut body = deployment_json("a");
    raw(&client, "POST", &deployments(&ns), Some(body.clone())).await?;
    body["spec"]["selector"]["matchLabels"] = json!({ "x": "y" });
    body["spec"]["template"]["metadata"]["labels"] = json!({ "x": "y" });
    let status = refused(
        raw(&client, "PUT", &format!("{}/a", deployments(&ns)), Some(body)).await,
        422,
    )?;
    ensure!(
        status.message.contains("field is immutable"),
        "{}",
        status.message
    );
    Ok(())
}

async fn deployment_needs_a_selector_and_a_container(client: Client, ns: String) -> anyhow::Result<()> {
    let mut body = deployment_json("a");
    body["spec"]["selector"] = Value::Null;
    body["spec"]["template"]["spec"]["containers"] = json!([]);
    let status = refused(raw(&client, "POST", &deployments(&ns), Some(body)).await, 422)?;
    let fields = blamed(&status);
    ensure!(fields.contains(&"spec.selector".to_owned()), "{fields:?}");
    ensure!(
        fields.contains(&"spec.template.spec.containers".to_owned()),
        "{fields:?}"
    );
    Ok(())
}

async fn deployment_probe_gets_defaults(client: Client, ns: String) -> anyhow::Result<()> {
    let mut body = deployment_json("a");
    body["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] =
        json!({ "httpGet": { "port": 80 } });
    let made = raw(&client, "POST", &deployments(&ns), Some(body)).await?;
    let probe = &made["spec"]["template"]["spec"]["containers"][0]["readinessProbe"];
    let expected = json!({
        "httpGet": { "path": "/", "port": 80, "scheme": "HTTP" },
        "periodSeconds": 10, "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3,
    });
    ensure!(*probe == expected, "{probe}");
    Ok(())
}

fn slice(kind: &str, address: &str) -> Value {
    json!({
        "metadata": { "name": "a" }, "addressType": kind, "ports": [{ "port": 80 }],
        "endpoints": [{ "addresses": [address] }],
    })
}

fn slices(ns: &str) -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{ns}/endpointslices")
}

async fn slice_address_type_is_immutable(client: Client, ns: String) -> anyhow::Result<()> {
    let made = raw(&client, "POST", &slices(&ns), Some(slice("IPv4", "198.18.0.9"))).await?;
    ensure!(
        made["ports"][0] == json!({ "name": "", "port": 80, "protocol": "TCP" }),
        "{made}"
    );
    let other = slice("IPv6", "2001:db8::1");
    let status = refused(
        raw(&client, "PUT", &format!("{}/a", slices(&ns)), Some(other)).await,
        422,
    )?;
    ensure!(blamed(&status).contains(&"addressType".to_owned()), "{status:?}");
    Ok(())
}

async fn slice_addresses_must_fit_their_type(client: Client, ns: String) -> anyhow::Result<()> {
    refused(
        raw(&client, "POST", &slices(&ns), Some(slice("IPv4", "nonsense"))).await,
        422,
    )?;
    refused(
        raw(&client, "POST", &slices(&ns), Some(slice("IPvX", "198.18.0.9"))).await,
        422,
    )?;
    Ok(())
}

async fn names_are_checked(client: Client, ns: String) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{ns}/configmaps");
    for name in ["Upper", "-a", "a_b", "a..b"] {
        let body = json!({ "metadata": { "name": name } });
        let status = refused(raw(&client, "POST", &path, Some(body)).await, 422)?;
        ensure!(blamed(&status) == ["metadata.name"], "{name}: {status:?}");
    }
    refused(
        raw(&client, "POST", &path, Some(json!({ "metadata": {} }))).await,
        422,
    )?;
    Ok(())
}

async fn labels_are_checked(client: Client, ns: String) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{ns}/configmaps");
    for labels in [
        json!({ "a b": "c" }),
        json!({ "a": "b c" }),
        json!({ "a": "x".repeat(64) }),
    ] {
        let body = json!({ "metadata": { "name": "a", "labels": labels } });
        let status = refused(raw(&client, "POST", &path, Some(body)).await, 422)?;
        ensure!(blamed(&status) == ["metadata.labels"], "{status:?}");
    }
    Ok(())
}

async fn a_wrong_type_is_a_bad_request(client: Client, ns: String) -> anyhow::Result<()> {
    let mut body = deployment_json("a");
    body["spec"]["replicas"] = json!("many");
    refused(raw(&client, "POST", &deployments(&ns), Some(body)).await, 400)?;
    Ok(())
}

async fn a_wrong_kind_is_a_bad_request(client: Client, ns: String) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{ns}/configmaps");
    let body = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "a" } });
    refused(raw(&client, "POST", &path, Some(body)).await, 400)?;
    Ok(())
}

async fn secret_data_must_be_base64(client: Client, ns: String) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{ns}/secrets");
    let bad = json!({ "metadata": { "name": "a" }, "data": { "k": "not base64!" } });
    refused(raw(&client, "POST", &path, Some(bad)).await, 400)?;
    let good = json!({ "metadata": { "name": "a" }, "stringData": { "k": "v" } });
    let made = raw(&client, "POST", &path, Some(good)).await?;
    ensure!(
        made["data"]["k"] == "dg==" && made.get("stringData").is_none(),
        "{made}"
    );
    ensure!(made["type"] == "Opaque", "{made}");
    Ok(())
}
