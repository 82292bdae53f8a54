//! What a pod reads of the PROXY header, with a reader that nobody here wrote, is who its client is.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use activator::fuzzing::proxy_header;
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ppp::v2::{Addresses, Command, Header, Protocol, Version};

#[derive(Arbitrary, Debug)]
struct Ends {
    from: Option<(IpAddr, u16)>,
    to: Option<(IpAddr, u16)>,
    /// What the client says next: no part of the header.
    said: Vec<u8>,
}

fuzz_target!(|ends: Ends| {
    let from = ends.from.map(SocketAddr::from);
    let to = ends.to.map(SocketAddr::from);
    let mut bytes = proxy_header(from, to);
    let length = bytes.len();
    bytes.extend(&ends.said);
    let header = Header::try_from(bytes.as_slice()).expect("a header");
    assert_eq!((header.version, header.command), (Version::Two, Command::Proxy));
    assert_eq!(header.as_bytes().len(), length);
    let plain = |end: SocketAddr| (end.ip().to_canonical(), end.port());
    let read = match header.addresses {
        Addresses::IPv4(read) => Some((
            (IpAddr::V4(read.source_address), read.source_port),
            (IpAddr::V4(read.destination_address), read.destination_port),
        )),
        Addresses::IPv6(read) => Some((
            (IpAddr::V6(read.source_address), read.source_port),
            (IpAddr::V6(read.destination_address), read.destination_port),
        )),
        _ => None,
    };
    let known = from.zip(to).map(|(from, to)| (plain(from), plain(to)));
    let wanted = known.filter(|(from, to)| from.0.is_ipv4() == to.0.is_ipv4());
    assert_eq!(read, wanted);
    assert_eq!(header.protocol == Protocol::Stream, wanted.is_some());
});
