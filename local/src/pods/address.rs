//! Addresses and ports of pods.
//!
//! Ports come from 61000–65535, then 32001–32767: above the activators' listening ports (10000–32000) and outside the
//! usual ephemeral range (32768–60999), so that no outgoing connection can sit on a port between the moment it was
//! found free and the moment the process binds it. Some 5,300 pods fit.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;

/// 127.64.0.0/12.
const NETWORK: u32 = 0x7f40_0000;
const NETWORK_SIZE: u32 = 1 << 20;

const PORTS: [RangeInclusive<u16>; 2] = [61_000..=65_535, 32_001..=32_767];

/// Gives out addresses. A clone is a handle to the same book.
#[derive(Clone, Default)]
pub(crate) struct Addresses(Arc<Mutex<Book>>);

struct Book {
    addresses: HashSet<Ipv4Addr>,
    ports: HashSet<u16>,
    next_address: u32,
    next_port: usize,
}

impl Default for Book {
    /// Starts anywhere, so that two embedded clusters on one machine seldom meet.
    fn default() -> Self {
        Self {
            addresses: HashSet::new(),
            ports: HashSet::new(),
            next_address: fastrand::u32(0..NETWORK_SIZE),
            next_port: fastrand::usize(0..*PORTS[0].end() as usize - *PORTS[0].start() as usize),
        }
    }
}

/// An address and a port, given back on drop.
pub(crate) struct Address {
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
    book: Arc<Mutex<Book>>,
}

impl Addresses {
    /// An address that no other pod has, and a port that nobody on this machine listens on. `None`: no port is left.
    pub(crate) fn take(&self) -> Option<Address> {
        let mut book = self.0.lock();
        let ip = book.address();
        let port = book.port(ip)?;
        book.ports.insert(port);
        if let IpAddr::V4(ip) = ip {
            book.addresses.insert(ip);
        }
        Some(Address {
            ip,
            port,
            book: Arc::clone(&self.0),
        })
    }

    /// An address without a port, for something that brings its own.
    pub(crate) fn take_ip(&self) -> IpAddr {
        let mut book = self.0.lock();
        let ip = book.address();
        if let IpAddr::V4(ip) = ip {
            book.addresses.insert(ip);
        }
        ip
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        let mut book = self.book.lock();
        book.ports.remove(&self.port);
        if let IpAddr::V4(ip) = self.ip {
            book.addresses.remove(&ip);
        }
    }
}

impl Book {
    /// Round and round, so that an address comes back as late as possible: whoever still connects to a pod that is
    /// gone must not meet another. Only Linux answers on all of 127.0.0.0/8.
    fn address(&mut self) -> IpAddr {
        if !cfg!(target_os = "linux") {
            return Ipv4Addr::LOCALHOST.into();
        }
        loop {
            self.next_address = (self.next_address + 1) % NETWORK_SIZE;
            let ip = Ipv4Addr::from(NETWORK + self.next_address);
            let last = ip.octets()[3];
            if last != 0 && last != 255 && !self.addresses.contains(&ip) {
                return ip.into();
            }
        }
    }

    fn port(&mut self, ip: IpAddr) -> Option<u16> {
        let count: usize = PORTS.iter().map(|range| range.len()).sum();
        for _ in 0..count {
            self.next_port = (self.next_port + 1) % count;
            let port = PORTS.iter().cloned().flatten().nth(self.next_port)?;
            let is_free = |ip: IpAddr| TcpListener::bind((ip, port)).is_ok();
            if !self.ports.contains(&port) && is_free(ip) && is_free(Ipv4Addr::UNSPECIFIED.into()) {
                return Some(port);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pods_share_an_address_or_a_port_and_both_come_back() {
        let addresses = Addresses::default();
        let taken: Vec<Address> = (0..50).filter_map(|_| addresses.take()).collect();
        let ports: HashSet<u16> = taken.iter().map(|it| it.port).collect();
        assert_eq!(ports.len(), 50);
        assert!(
            ports
                .iter()
                .all(|port| PORTS.iter().any(|range| range.contains(port)))
        );
        drop(taken);
        assert!(addresses.0.lock().ports.is_empty());
        assert!(addresses.0.lock().addresses.is_empty());
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_not_given() {
        let addresses = Addresses::default();
        let Some(first) = addresses.take() else {
            panic!("no port")
        };
        let _listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, first.port)).expect("free");
        let port = first.port;
        drop(first);
        {
            let mut book = addresses.0.lock();
            book.next_port = book.next_port.saturating_sub(1);
        }
        assert_ne!(addresses.take().map(|it| it.port), Some(port));
    }
}
