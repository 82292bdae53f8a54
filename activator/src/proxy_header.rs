//! The PROXY protocol's header of version 2: what a pod that speaks it reads before the first byte of its client. Pure.
//!
//! <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>, §2.2. Bytes are in network order.

use std::net::{IpAddr, SocketAddr};

/// Tells the header from any other protocol.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY: the connection is a client's. Our own probes send no header, and no byte at all.
const PROXY: u8 = 0x21;
const UNSPEC: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// The header of a connection that came `from` a client `to` us. IPv4 in IPv6's clothes is IPv4; what has no common
/// family, or is not known, is UNSPEC, which tells the pod to look at the connection itself.
pub(crate) fn header(from: Option<SocketAddr>, to: Option<SocketAddr>) -> Vec<u8> {
    let mut addresses = Vec::with_capacity(36);
    let mut family = UNSPEC;
    if let (Some(from), Some(to)) = (from, to) {
        match (from.ip().to_canonical(), to.ip().to_canonical()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                family = TCP_OVER_IPV4;
                addresses.extend(source.octets());
                addresses.extend(destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                family = TCP_OVER_IPV6;
                addresses.extend(source.octets());
                addresses.extend(destination.octets());
            }
            _ => {}
        }
        if family != UNSPEC {
            addresses.extend(from.port().to_be_bytes());
            addresses.extend(to.port().to_be_bytes());
        }
    }
    let mut header = Vec::with_capacity(16 + addresses.len());
    header.extend(SIGNATURE);
    header.extend([PROXY, family]);
    // 0, 12 or 36.
    header.extend([0, u8::try_from(addresses.len()).unwrap_or_default()]);
    header.extend(addresses);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_names_both_ends_in_their_family() {
        type Row<'a> = (&'a str, Option<&'a str>, Option<&'a str>, &'a [u8]);
        let rows: [Row<'_>; 6] = [
            (
                "IPv4",
                Some("10.1.2.3:40000"),
                Some("10.9.8.7:443"),
                b"\x21\x11\x00\x0c\x0a\x01\x02\x03\x0a\x09\x08\x07\x9c\x40\x01\xbb",
            ),
            (
                "IPv4 on a socket of IPv6",
                Some("[::ffff:10.1.2.3]:40000"),
                Some("[::ffff:10.9.8.7]:443"),
                b"\x21\x11\x00\x0c\x0a\x01\x02\x03\x0a\x09\x08\x07\x9c\x40\x01\xbb",
            ),
            (
                "IPv6",
                Some("[2001:db8::1]:40000"),
                Some("[2001:db8::2]:443"),
                b"\x21\x21\x00\x24\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x02\x9c\x40\x01\xbb",
            ),
            ("mixed", Some("10.1.2.3:40000"), Some("[2001:db8::2]:443"), b"\x21\x00\x00\x00"),
            ("a client that has gone", None, Some("10.9.8.7:443"), b"\x21\x00\x00\x00"),
            ("nothing known", None, None, b"\x21\x00\x00\x00"),
        ];
        for (what, from, to, wanted) in rows {
            let read = |text: &str| text.parse().expect("an address");
            let header = header(from.map(read), to.map(read));
            assert_eq!(
                header[..12],
                *b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a",
                "{what}"
            );
            assert_eq!(&header[12..], wanted, "{what}");
        }
    }
}
