//! Whose request it is, where a proxy stands in between: what trusted proxies say in `X-Forwarded-For`.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};

use crate::listener::TrustedProxies;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Addresses of one request that are looked at.
const MAX_HOPS: usize = 32;

/// The address of the client. Each proxy appends the address of its peer: what the last trusted one says is true, and
/// what its peer says only if that is trusted too. Where this makes no sense, it is the peer.
pub(super) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &TrustedProxies) -> IpAddr {
    let peer = peer.to_canonical();
    if !trusted.contains(peer) {
        return peer;
    }
    let mut leftmost = None;
    let lines = headers.get_all(&FORWARDED_FOR).iter().collect::<Vec<_>>();
    let entries = lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    for (hop, entry) in entries.enumerate() {
        let Some(address) = address(entry).filter(|_| hop < MAX_HOPS) else { return peer };
        if !trusted.contains(address) {
            return address;
        }
        leftmost = Some(address);
    }
    // All of them are proxies: one of them asks for itself.
    leftmost.unwrap_or(peer)
}

/// `192.0.2.1`, `192.0.2.1:443`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:443`, with space around it.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim_matches([' ', '\t']);
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok().map(IpAddr::from);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    Some(text.parse().ok().or_else(in_brackets).or_else(with_port)?.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, lines: &[&str]) -> String {
        let trusted = TrustedProxies::new(["10.0.0.0/8", "fd00::/8"].map(|text| TrustedProxies::parse(text).expect("a network")));
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(&FORWARDED_FOR, http::HeaderValue::from_bytes(line.as_bytes()).expect("a value"));
        }
        client_address(peer.parse().expect("an address"), &headers, &trusted).to_string()
    }

    #[test]
    fn a_peer_that_is_not_trusted_says_nothing() {
        assert_eq!(client("192.0.2.1", &["192.0.2.9"]), "192.0.2.1");
        assert_eq!(client("::ffff:192.0.2.1", &["192.0.2.9"]), "192.0.2.1");
    }

    #[test]
    fn the_client_is_the_rightmost_address_that_is_not_trusted() {
        for (lines, expected) in [
            (&["192.0.2.9"][..], "192.0.2.9"),
            (&["1.1.1.1, 192.0.2.9"], "192.0.2.9"),
            (&["1.1.1.1, 192.0.2.9, 10.1.1.1"], "192.0.2.9"),
            (&["1.1.1.1", "192.0.2.9", "10.1.1.1,fd00::3"], "192.0.2.9"),
            (&["  192.0.2.9\t,  10.2.2.2 "], "192.0.2.9"),
            (&["192.0.2.9:4711"], "192.0.2.9"),
            (&["2001:db8::9"], "2001:db8::9"),
            (&["[2001:db8::9]"], "2001:db8::9"),
            (&["[2001:db8::9]:4711"], "2001:db8::9"),
            (&["::ffff:192.0.2.9"], "192.0.2.9"),
            (&["garbage, 192.0.2.9"], "192.0.2.9"),
            (&["10.3.3.3, 10.4.4.4"], "10.3.3.3"),
        ] {
            assert_eq!(client("10.1.2.3", lines), expected, "{lines:?}");
            assert_eq!(client("::ffff:10.1.2.3", lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_the_peer() {
        let many = vec!["10.9.9.9"; MAX_HOPS + 1].join(",");
        for lines in [
            &[][..],
            &[""],
            &["unknown"],
            &["192.0.2.9,"],
            &["192.0.2.9, _hidden"],
            &["192.0.2.9, garbage, 10.1.1.1"],
            &["192.0.2.9:70000"],
            &["[192.0.2.9]"],
            &["fe80::1%eth0"],
            &["192.0.2"],
            &["1.1.1.1", ""],
            &["r\u{e4}tsel"],
            &[&many],
        ] {
            assert_eq!(client("10.1.2.3", lines), "10.1.2.3", "{lines:?}");
        }
    }
}
