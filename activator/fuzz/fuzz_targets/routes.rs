//! Route and EndpointSlice snapshots: anything that has the shape of one can be applied, changed and taken away in any order;
//! no port stays open that no Route has, and a Service beside it is served all the while.
#![no_main]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use arbitrary::{Arbitrary, Result, Unstructured};
use crds::Route;
use crds::route::{
    Ignore, Probe, ProbeHeader, ProbeKind, Protocol, RoutePool, RoutePort, RouteSpec, Workload,
};
use dormouse_activator_fuzz::{Front, route, slice};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use libfuzzer_sys::fuzz_target;

/// Where fuzzed Routes may listen: few, so that they meet.
const PORTS: std::ops::Range<u16> = 18_700..18_706;
const NAMES: [&str; 4] = [
    "a",
    "b",
    "c",
    "A name that Kubernetes would not take: \u{1f439}\n",
];

fuzz_target!(|bytes: &[u8]| {
    let front = Front::get();
    let entered = front.runtime.enter();
    // As a watch reads them, text first.
    if let Ok(mut route) = serde_json::from_slice::<Route>(bytes) {
        confine(&mut route.spec);
        let again: Route =
            serde_json::from_slice(&serde_json::to_vec(&route).expect("JSON")).expect("its own JSON");
        assert_eq!(again, route, "a Route that does not survive its own JSON");
        apply(front, &route);
    }
    if let Ok(mut slice) = serde_json::from_slice::<EndpointSlice>(bytes) {
        at_home(&mut slice);
        front.activator.lock().expect("not poisoned").apply_slice(&slice);
    }
    // Every operation takes at least one byte, so their number is bounded by the input.
    let mut source = Unstructured::new(bytes);
    while !source.is_empty() && step(front, &mut source).is_ok() {}
    clear(front);
    drop(entered);
    front.check();
});

/// One change of the cluster.
fn step(front: &Front, source: &mut Unstructured) -> Result<()> {
    let name = *source.choose(&NAMES)?;
    let mut activator = front.activator.lock().expect("not poisoned");
    match source.int_in_range(0..=5)? {
        0..=1 => {
            let mut route = route(name, PORTS.start);
            route.spec = spec(source)?;
            route.metadata.generation = Option::arbitrary(source)?;
            drop(activator);
            apply(front, &route);
        }
        2 => activator.delete_route("shop", name),
        3..=4 => {
            let address = SocketAddr::from(([127, 0, 2, u8::arbitrary(source)?], u16::arbitrary(source)?));
            let listen = source.int_in_range(PORTS.start..=PORTS.end - 1)?;
            let mut slice = slice(name, source.choose(&NAMES)?, listen, address);
            let conditions = slice.endpoints[0].conditions.as_mut().expect("made with");
            conditions.serving = Option::arbitrary(source)?;
            conditions.terminating = Option::arbitrary(source)?;
            if bool::arbitrary(source)? {
                slice.endpoints[0].addresses.clear();
            }
            if bool::arbitrary(source)? {
                slice.ports = None;
            }
            activator.apply_slice(&slice);
        }
        _ => activator.delete_slice("shop", name),
    }
    Ok(())
}

fn spec(source: &mut Unstructured) -> Result<RouteSpec> {
    let mut spec = RouteSpec {
        queue_limit: u32::arbitrary(source)?,
        cold_start_timeout_ms: u64::arbitrary(source)?,
        response_start_timeout_ms: u64::arbitrary(source)?,
        request_timeout_ms: u64::arbitrary(source)?,
        stream_idle_timeout_ms: u64::arbitrary(source)?,
        ignore: Ignore {
            user_agents: Vec::arbitrary(source)?,
            paths: Vec::arbitrary(source)?,
        },
        ..RouteSpec::default()
    };
    for _ in 0..source.int_in_range(0..=3)? {
        spec.ports.push(RoutePort {
            name: String::arbitrary(source)?,
            port: u16::arbitrary(source)?,
            listen: u16::arbitrary(source)?,
            protocol: *source.choose(&[Protocol::Http, Protocol::Tcp])?,
            h2c: bool::arbitrary(source)?,
            ..RoutePort::default()
        });
    }
    for _ in 0..source.int_in_range(0..=3)? {
        let name = *source.choose(&NAMES)?;
        spec.pools.push(RoutePool {
            name: name.into(),
            workload: Workload {
                name: String::arbitrary(source)?,
                ..Workload::default()
            },
            weight: u32::arbitrary(source)?,
            container_concurrency: u32::arbitrary(source)?,
            probe: Probe {
                kind: *source.choose(&[ProbeKind::Tcp, ProbeKind::Http, ProbeKind::Kubernetes])?,
                path: String::arbitrary(source)?,
                host: String::arbitrary(source)?,
                headers: vec![ProbeHeader {
                    name: String::arbitrary(source)?,
                    value: String::arbitrary(source)?,
                }],
                timeout_ms: u64::arbitrary(source)?,
                initial_delay_ms: u64::arbitrary(source)?,
            },
        });
    }
    confine(&mut spec);
    Ok(spec)
}

/// Ports as the CRD's schema would have them, and few.
fn confine(spec: &mut RouteSpec) {
    spec.ports.truncate(8);
    for port in &mut spec.ports {
        port.listen = PORTS.start + port.listen % (PORTS.end - PORTS.start);
    }
}

/// Applies it, and asks each of its ports something whose answer nobody waits for.
fn apply(front: &Front, route: &Route) {
    front.activator.lock().expect("not poisoned").apply_route(route);
    for port in &route.spec.ports {
        let to = SocketAddr::from(([127, 0, 0, 1], port.listen));
        if let Ok(mut stream) = std::net::TcpStream::connect(to) {
            drop(std::io::Write::write_all(
                &mut stream,
                b"GET / HTTP/1.1\r\nhost: web\r\n\r\n",
            ));
        }
    }
}

/// Everything fuzzed is taken away: what is left is the Service beside.
fn clear(front: &Front) {
    let mut activator = front.activator.lock().expect("not poisoned");
    for name in NAMES {
        activator.delete_slice("shop", name);
    }
    for name in NAMES {
        activator.delete_route("shop", name);
    }
    // A Route from text may have had another name or namespace, and keeps its ports.
    assert!(
        activator.ports() <= 1 + usize::from(PORTS.end - PORTS.start),
        "ports that no Route has: {activator:?}"
    );
}

/// Addresses are probed: they stay on this machine.
fn at_home(slice: &mut EndpointSlice) {
    for address in slice
        .endpoints
        .iter_mut()
        .flat_map(|endpoint| &mut endpoint.addresses)
    {
        match address.parse() {
            Ok(IpAddr::V4(v4)) => {
                let [_, _, high, low] = v4.octets();
                *address = format!("127.0.{high}.{low}");
            }
            Ok(IpAddr::V6(_)) => *address = Ipv6Addr::LOCALHOST.to_string(),
            Err(_) => {}
        }
    }
}
