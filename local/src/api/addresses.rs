//! Cluster addresses and node ports of Services: given out, kept, given back.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::families;
use super::resources::Resource;
use super::status::{ApiError, Cause};

/// First and last address given out of 127.96.0.0/12. The first 255 are left to those who choose theirs.
const FIRST: u32 = u32::from_be_bytes([127, 96, 1, 0]);
const LAST: u32 = u32::from_be_bytes([127, 111, 255, 254]);

/// Node ports, as in Kubernetes.
const FIRST_NODE_PORT: u16 = 30_000;
const LAST_NODE_PORT: u16 = 32_767;

/// Who holds an address or a port: the Service's uid.
type Holder = String;

/// What is given out.
#[derive(Debug)]
pub(crate) struct Addresses {
    addresses: BTreeMap<Ipv4Addr, Holder>,
    ports: BTreeMap<u16, Holder>,
    next: u32,
}

impl Default for Addresses {
    /// Starts at a random address: the range is this machine's loopback, and two embedded clusters on one machine are
    /// then most unlikely to want the same address.
    fn default() -> Self {
        Self {
            addresses: BTreeMap::new(),
            ports: BTreeMap::new(),
            next: fastrand::u32(FIRST..=LAST),
        }
    }
}

/// What one write took, and what it would free.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    taken_addresses: Vec<Ipv4Addr>,
    taken_ports: Vec<u16>,
    freed_addresses: Vec<Ipv4Addr>,
    freed_ports: Vec<u16>,
}

fn address_of(service: &Value) -> Option<Ipv4Addr> {
    service.pointer("/spec/clusterIP")?.as_str()?.parse().ok()
}

fn ports_of(service: &Value) -> Vec<u16> {
    let all = service
        .pointer("/spec/ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    all.filter_map(|port| u16::try_from(port["nodePort"].as_u64()?).ok())
        .filter(|&port| port > 0)
        .collect()
}

impl Addresses {
    /// Gives a Service that is about to be written what it lacks. `keep` or `give_back` must follow.
    pub(crate) fn take(
        &mut self,
        resource: &Resource,
        service: &mut Value,
        live: Option<&Value>,
    ) -> Result<Lease, ApiError> {
        let mut lease = Lease::default();
        if !resource.is("", "Service") || !service["spec"].is_object() {
            return Ok(lease);
        }
        let holder = service["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        match self.fill(&holder, service, live, &mut lease) {
            Ok(()) => Ok(lease),
            Err(causes) => {
                self.give_back(lease);
                let name = service["metadata"]["name"].as_str().unwrap_or_default();
                Err(ApiError::invalid("", "Service", name, &causes))
            }
        }
    }

    fn fill(
        &mut self,
        holder: &str,
        service: &mut Value,
        live: Option<&Value>,
        lease: &mut Lease,
    ) -> Result<(), Vec<Cause>> {
        let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP").to_owned();
        let old_kind = live.map(|live| live["spec"]["type"].as_str().unwrap_or("ClusterIP").to_owned());
        if kind == "ExternalName" {
            if let Some(spec) = service["spec"].as_object_mut() {
                for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                    spec.remove(key);
                }
            }
        } else {
            // What an update leaves out stays as it is.
            if let Some(live) = live.filter(|_| old_kind.as_deref() != Some("ExternalName")) {
                for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                    if service["spec"].get(key).is_none()
                        && let Some(value) = live["spec"].get(key)
                    {
                        service["spec"][key] = value.clone();
                    }
                }
            }
            let spec = &mut service["spec"];
            if spec.get("clusterIP").is_none()
                && let Some(first) = spec["clusterIPs"].get(0).cloned()
            {
                spec["clusterIP"] = first;
            }
            families::fill(service, live)?;
            self.cluster_ip(holder, service, live, lease)
                .map_err(|cause| vec![cause])?;
        }
        self.node_ports(holder, service, live, &kind, lease)
            .map_err(|cause| vec![cause])?;
        if let Some(live) = live {
            let (now, ports) = (address_of(service), ports_of(service));
            lease.freed_addresses = address_of(live)
                .into_iter()
                .filter(|it| Some(*it) != now)
                .collect();
            lease.freed_ports = ports_of(live)
                .into_iter()
                .filter(|it| !ports.contains(it))
                .collect();
        }
        Ok(())
    }

    fn cluster_ip(
        &mut self,
        holder: &str,
        service: &mut Value,
        live: Option<&Value>,
        lease: &mut Lease,
    ) -> Result<(), Cause> {
        let spec = &mut service["spec"];
        let given = spec["clusterIP"].as_str().map(str::to_owned);
        let address = match given.as_deref() {
            Some("None") => None,
            Some(text) => {
                let address: Ipv4Addr = text.parse().map_err(|_| {
                    Cause::invalid(
                        "spec.clusterIPs[0]",
                        &json!([text]),
                        "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                    )
                })?;
                let mine = live.and_then(address_of) == Some(address);
                if !mine {
                    let number = u32::from(address);
                    if number & 0xfff0_0000 != FIRST & 0xfff0_0000 {
                        return Err(Cause::invalid(
                            "spec.clusterIPs",
                            &json!([text]),
                            "failed to allocate IP: the provided IP is not in the valid range. The range of valid IPs is 127.96.0.0/12",
                        ));
                    }
                    if self.addresses.get(&address).is_some_and(|it| it != holder) {
                        return Err(Cause::invalid(
                            "spec.clusterIPs",
                            &json!([text]),
                            &format!("failed to allocate IP {text}: provided IP is already allocated"),
                        ));
                    }
                    self.addresses.insert(address, holder.to_owned());
                    lease.taken_addresses.push(address);
                }
                Some(address)
            }
            None => {
                let address = self.free_address().ok_or_else(|| {
                    Cause::invalid(
                        "spec.clusterIPs",
                        &json!([]),
                        "failed to allocate a serviceIP: range is full",
                    )
                })?;
                self.addresses.insert(address, holder.to_owned());
                lease.taken_addresses.push(address);
                Some(address)
            }
        };
        let text = address.map_or_else(|| "None".to_owned(), |address| address.to_string());
        spec["clusterIP"] = json!(text);
        if spec.get("clusterIPs").is_none() {
            spec["clusterIPs"] = json!([text]);
        }
        Ok(())
    }

    fn free_address(&mut self) -> Option<Ipv4Addr> {
        for _ in FIRST..=LAST {
            let number = if (FIRST..=LAST).contains(&self.next) {
                self.next
            } else {
                FIRST
            };
            self.next = number + 1;
            let address = Ipv4Addr::from(number);
            // .0 and .255 look like networks and broadcasts to some tools.
            let last = address.octets()[3];
            if last != 0 && last != 255 && !self.addresses.contains_key(&address) {
                return Some(address);
            }
        }
        None
    }

    fn node_ports(
        &mut self,
        holder: &str,
        service: &mut Value,
        live: Option<&Value>,
        kind: &str,
        lease: &mut Lease,
    ) -> Result<(), Cause> {
        let wanted = kind == "NodePort"
            || kind == "LoadBalancer" && service["spec"]["allocateLoadBalancerNodePorts"] != false;
        let old = live.map(|live| live["spec"]["ports"].clone()).unwrap_or_default();
        let Some(ports) = service["spec"].get_mut("ports").and_then(Value::as_array_mut) else {
            return Ok(());
        };
        for (at, port) in ports.iter_mut().enumerate() {
            let field = format!("spec.ports[{at}].nodePort");
            if !wanted {
                let changed = live.is_some();
                if let Some(map) = port.as_object_mut()
                    && (changed || map.get("nodePort").is_some_and(|it| *it == 0))
                {
                    map.remove("nodePort");
                }
                if port.get("nodePort").is_some() {
                    return Err(Cause::forbidden(
                        field,
                        "may not be used when `type` is 'ClusterIP'",
                    ));
                }
                continue;
            }
            if port.get("nodePort").is_none() {
                let kept = old
                    .as_array()
                    .into_iter()
                    .flatten()
                    .find(|it| it["port"] == port["port"] && it["protocol"] == port["protocol"]);
                if let Some(kept) = kept.and_then(|it| it.get("nodePort")) {
                    port["nodePort"] = kept.clone();
                }
            }
            let number = match port["nodePort"].as_u64().and_then(|it| u16::try_from(it).ok()) {
                Some(number) if number > 0 => number,
                _ => (FIRST_NODE_PORT..=LAST_NODE_PORT)
                    .find(|port| !self.ports.contains_key(port))
                    .ok_or_else(|| Cause::invalid(&field, &json!(0), "no node port is free"))?,
            };
            if !(FIRST_NODE_PORT..=LAST_NODE_PORT).contains(&number) {
                return Err(Cause::invalid(
                    field,
                    &json!(number),
                    "provided port is not in the valid range. The range of valid ports is 30000-32767",
                ));
            }
            match self.ports.get(&number) {
                Some(other) if other != holder => {
                    return Err(Cause::invalid(
                        field,
                        &json!(number),
                        "provided port is already allocated",
                    ));
                }
                Some(_) => {}
                None => {
                    self.ports.insert(number, holder.to_owned());
                    lease.taken_ports.push(number);
                }
            }
            port["nodePort"] = json!(number);
        }
        Ok(())
    }

    /// The write came about: what it no longer uses is free.
    pub(crate) fn keep(&mut self, lease: Lease) {
        for address in lease.freed_addresses {
            self.addresses.remove(&address);
        }
        for port in lease.freed_ports {
            self.ports.remove(&port);
        }
    }

    /// The write did not come about: what it took is free.
    pub(crate) fn give_back(&mut self, lease: Lease) {
        for address in lease.taken_addresses {
            self.addresses.remove(&address);
        }
        for port in lease.taken_ports {
            self.ports.remove(&port);
        }
    }

    /// The Service is deleted.
    pub(crate) fn free(&mut self, resource: &Resource, service: &Value) {
        if !resource.is("", "Service") {
            return;
        }
        if let Some(address) = address_of(service) {
            self.addresses.remove(&address);
        }
        for port in ports_of(service) {
            self.ports.remove(&port);
        }
    }
}
