//! The parity cases against a real kube-apiserver: where it answers otherwise, the embedded API is wrong.
//!
//! `tests/cluster/up`, then `tests/cluster/inside cargo test -p dormouse-tests --test parity_real -- --ignored`.

use dormouse_tests::parity;

#[tokio::test]
#[ignore = "needs cluster (KUBECONFIG, made by tests/cluster/up)"]
async fn all_cases_hold_on_a_real_cluster() {
    let mut config = kube::Config::infer().await.unwrap();
    // A refusal is what some cases are after; retrying it for minutes proves nothing.
    config.default_retry = false;
    let client = kube::Client::try_from(config).unwrap();
    let cases = parity::cases();
    let mut failed = Vec::new();
    for case in &cases {
        if let Err(error) = parity::run(client.clone(), case).await {
            println!("parity: {} {}: {error:#}", case.group, case.name);
            failed.push(case.name);
        }
    }
    println!(
        "parity on a real cluster: {} passed, {} failed",
        cases.len() - failed.len(),
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:?}");
}
