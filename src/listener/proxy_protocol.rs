//! The PROXY protocol, versions 1 and 2: a proxy says at the beginning of a connection whose connection it passes on.
//!
//! Only proxies that are trusted may say so. The header comes before TLS.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long the header may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How a header of version 1 begins, and how long it may be.
const VERSION_1: &[u8] = b"PROXY ";
const MAX_VERSION_1: usize = 107;
/// How a header of version 2 begins; two bytes and the length of the rest follow.
const VERSION_2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of the rest at most: addresses, and what proxies add to them.
const MAX_VERSION_2: usize = 4096;
/// Logged once in this time: a peer could fill the logs.
const SILENCE: Duration = Duration::from_secs(1);

/// The proxies that may say whom they speak for.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    /// Those with addresses of these networks.
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        // An IPv4 peer of an IPv6 socket is compared as IPv4.
        let canonical = |network: IpNet| match network {
            IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.network().to_ipv4_mapped() {
                Some(v4) => Ipv4Net::new(v4, v6.prefix_len() - 96).map_or(network, IpNet::V4),
                None => network,
            },
            other => other,
        };
        Self(networks.into_iter().map(canonical).collect())
    }

    /// Reads a network such as `10.0.0.0/8` or `fd00::/8`, or a single address. The error is a sentence.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<IpNet, String> {
        let text = text.trim();
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        network.map_err(|_| "write a network or an address, such as 10.0.0.0/8, fd00::/8 or 192.0.2.7".to_owned())
    }

    /// Whether this is the address of one.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Why a connection is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("this peer is no --trusted-proxy, so its PROXY protocol header is not believed")]
    Untrusted,
    #[error("this listener does not take the PROXY protocol: name it in --proxy-protocol, or switch the protocol off in the proxy")]
    NotExpected,
    #[error("its PROXY protocol header is missing: switch the protocol on in the proxy, or take the listener out of --proxy-protocol")]
    Missing,
    #[error("its PROXY protocol header is malformed")]
    Malformed,
    #[error("its PROXY protocol header is over {MAX_VERSION_2} bytes")]
    TooLong,
    #[error("its PROXY protocol header did not arrive in time")]
    Late,
}

impl Problem {
    const fn label(self) -> &'static str {
        match self {
            Self::Untrusted => "untrusted",
            Self::NotExpected => "not_expected",
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
            Self::Late => "late",
        }
    }
}

/// Whether a listener takes the PROXY protocol, and from whom.
#[derive(Clone, Debug, Default)]
pub(super) struct ProxyProtocol {
    pub(super) trusted: TrustedProxies,
    pub(super) expected: bool,
}

impl ProxyProtocol {
    /// Whose connection it is: of the peer, or of the client that a trusted proxy names. `None`: it is not to be served, and
    /// that was logged.
    pub(super) async fn client(&self, stream: &mut TcpStream, peer: IpAddr, listener: &'static str) -> Option<IpAddr> {
        if !self.expected || !self.trusted.contains(peer) {
            return Some(peer);
        }
        let read = timeout(TIMEOUT, read(stream)).await.unwrap_or(Err(Some(Problem::Late)));
        match read {
            Ok(named) => Some(named.unwrap_or(peer)),
            // It has closed the connection without a byte, as some health checks do.
            Err(None) => None,
            Err(Some(problem)) => {
                refuse(problem, peer, listener);
                None
            }
        }
    }

    /// Whether a connection that is about to be served begins with a header that is not expected of this peer. Looks at what
    /// has arrived so far. HTTP would refuse the header too, but without saying what is wrong.
    pub(super) async fn is_surprised(&self, stream: &TcpStream, peer: IpAddr, listener: &'static str) -> bool {
        let mut begin = [0; VERSION_2.len()];
        let Ok(length) = stream.peek(&mut begin).await else { return false };
        let is_header = begin[..length].starts_with(VERSION_1) || (length > 4 && VERSION_2.starts_with(&begin[..length]));
        if is_header {
            refuse(if self.trusted.contains(peer) { Problem::NotExpected } else { Problem::Untrusted }, peer, listener);
        }
        is_header
    }
}

fn refuse(problem: Problem, peer: IpAddr, listener: &'static str) {
    metrics::counter!("leadfold_proxy_headers_refused_total", "listener" => listener, "reason" => problem.label()).increment(1);
    static BEGAN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = u64::try_from(BEGAN.elapsed().as_millis()).unwrap_or(u64::MAX);
    let next = NEXT.load(Ordering::Relaxed);
    let silence = SILENCE.as_millis() as u64;
    if now >= next && NEXT.compare_exchange(next, now + silence, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        tracing::warn!(listener, %peer, "a connection is not served: {problem}");
    }
}

/// Reads a header and nothing behind it: the client that it names, if it names one. An error without a problem: the
/// connection ended without a byte.
async fn read(stream: &mut TcpStream) -> Result<Option<IpAddr>, Option<Problem>> {
    let mut header = Vec::with_capacity(MAX_VERSION_1);
    // Every header is longer than this.
    read_to(stream, &mut header, VERSION_2.len()).await?;
    if header == VERSION_2 {
        read_to(stream, &mut header, VERSION_2.len() + 4).await?;
        let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if rest > MAX_VERSION_2 {
            return Err(Some(Problem::TooLong));
        }
        let end = header.len() + rest;
        read_to(stream, &mut header, end).await?;
    } else if header.starts_with(VERSION_1) {
        while !header.ends_with(b"\n") {
            let mut more = [0; MAX_VERSION_1];
            let room = MAX_VERSION_1 - header.len();
            if room == 0 {
                return Err(Some(Problem::Malformed));
            }
            let arrived = stream.peek(&mut more[..room]).await.map_err(|_| Some(Problem::Malformed))?;
            let line = more[..arrived].iter().position(|byte| *byte == b'\n').map_or(arrived, |at| at + 1);
            let end = header.len() + line.max(1);
            read_to(stream, &mut header, end).await?;
        }
    } else {
        return Err(Some(Problem::Missing));
    }
    let config = ParseConfig { include_tlvs: false, allow_v1: true, allow_v2: true };
    let (parsed, _) = ProxyHeader::parse(&header, config).map_err(|_| Some(Problem::Malformed))?;
    Ok(parsed.proxied_address().map(|address| address.source.ip().to_canonical()))
}

/// Reads until there are so many bytes.
async fn read_to(stream: &mut TcpStream, header: &mut Vec<u8>, length: usize) -> Result<(), Option<Problem>> {
    let begin = header.len();
    header.resize(length, 0);
    let mut at = begin;
    while at < length {
        match stream.read(&mut header[at..]).await {
            Ok(0) | Err(_) if at == 0 => return Err(None),
            Ok(0) | Err(_) => return Err(Some(Problem::Malformed)),
            Ok(read) => at += read,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn trusted_proxies_are_networks_and_addresses_of_both_families() {
        let parse = |text: &str| TrustedProxies::parse(text).expect(text);
        let trusted = TrustedProxies::new(["10.0.0.0/8", "192.0.2.7", "fd00::/8", " ::1 ", "::ffff:198.51.100.0/120"].map(parse));
        for address in ["10.9.9.9", "::ffff:10.9.9.9", "192.0.2.7", "fd00:1::2", "::1", "198.51.100.9", "::ffff:198.51.100.9"] {
            assert!(trusted.contains(ip(address)), "{address}");
        }
        for address in ["11.0.0.1", "192.0.2.8", "fe80::1", "::2", "198.51.101.1", "::ffff:11.0.0.1"] {
            assert!(!trusted.contains(ip(address)), "{address}");
        }
        assert!(!TrustedProxies::default().contains(ip("127.0.0.1")));
        for bad in ["", "10.0.0.0/33", "localhost", "10.0.0/8", "::/129", "*"] {
            assert!(TrustedProxies::parse(bad).is_err(), "{bad}");
        }
    }

    /// What a header that comes in pieces of so many bytes says, and what is left behind it.
    async fn read_in_pieces(sent: &[u8], piece: usize) -> (Result<Option<IpAddr>, Option<Problem>>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        let (mut server, _) = listener.accept().await.expect("a connection");
        client.set_nodelay(true).expect("a socket");
        let write = async move {
            for piece in sent.chunks(piece) {
                let _ = client.write_all(piece).await;
                tokio::task::yield_now().await;
            }
        };
        let (read, ()) = tokio::join!(read(&mut server), write);
        let mut rest = Vec::new();
        if read.is_ok() {
            server.read_to_end(&mut rest).await.expect("the rest");
        }
        (read, rest)
    }

    fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [&VERSION_2[..], &[command, family], &length, rest].concat()
    }

    #[tokio::test]
    async fn headers_of_both_versions_are_read_and_nothing_behind_them() {
        let v4 = [192, 0, 2, 9, 192, 0, 2, 1, 0, 80, 0, 81];
        let v6 = [ip_bytes("2001:db8::9"), ip_bytes("2001:db8::1"), vec![0, 80, 0, 81]].concat();
        let with_tlv = [&v4[..], &[0x02, 0, 3], b"abc", &[0x20, 0, 5, 1, 0, 0, 0, 0]].concat();
        for (header, expected) in [
            (b"PROXY TCP4 192.0.2.9 192.0.2.1 80 81\r\n".to_vec(), Some("192.0.2.9")),
            (b"PROXY TCP6 2001:db8::9 2001:db8::1 80 81\r\n".to_vec(), Some("2001:db8::9")),
            (b"PROXY TCP6 ::ffff:192.0.2.9 ::1 80 81\r\n".to_vec(), Some("192.0.2.9")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff:f...f:ffff 1 2\r\n".to_vec(), None),
            (version_2(0x21, 0x11, &v4), Some("192.0.2.9")),
            (version_2(0x21, 0x21, &v6), Some("2001:db8::9")),
            (version_2(0x21, 0x11, &with_tlv), Some("192.0.2.9")),
            (version_2(0x20, 0x00, &[]), None),
            (version_2(0x20, 0x11, &v4), None),
            (version_2(0x21, 0x00, &[]), None),
            (version_2(0x21, 0x00, &[1, 2, 3]), None),
            (version_2(0x21, 0x31, &[0; 216]), None),
        ] {
            for piece in [1, 7, 4096] {
                let sent = [&header[..], b"POST / HTTP/1.1\r\n\r\n"].concat();
                let (read, rest) = read_in_pieces(&sent, piece).await;
                assert_eq!(read, Ok(expected.map(ip)), "{header:?} by {piece}");
                assert_eq!(rest, b"POST / HTTP/1.1\r\n\r\n", "{header:?} by {piece}");
            }
        }
    }

    fn ip_bytes(text: &str) -> Vec<u8> {
        let IpAddr::V6(address) = ip(text) else { panic!("IPv6") };
        address.octets().to_vec()
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let long = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
        for (sent, expected) in [
            (b"POST / HTTP/1.1\r\n\r\n".to_vec(), Some(Problem::Missing)),
            (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\0".to_vec(), Some(Problem::Missing)),
            (b"PROXYTCP4 192.0.2.9 192.0.2.1 80 81\r\n".to_vec(), Some(Problem::Missing)),
            (b"PROXY TCP4 192.0.2.9 192.0.2.1 80 81\n".to_vec(), Some(Problem::Malformed)),
            (b"PROXY TCP4 2001:db8::9 192.0.2.1 80 81\r\n".to_vec(), Some(Problem::Malformed)),
            (b"PROXY TCP4 192.0.2.9 192.0.2.1 80 65536\r\n".to_vec(), Some(Problem::Malformed)),
            (b"PROXY TCP4 192.0.2.9".to_vec(), Some(Problem::Malformed)),
            (long, Some(Problem::Malformed)),
            (version_2(0x21, 0x11, &[1, 2, 3]), Some(Problem::Malformed)),
            (version_2(0x31, 0x11, &[0; 12]), Some(Problem::Malformed)),
            (version_2(0x21, 0x31, &[0; 12]), Some(Problem::Malformed)),
            (version_2(0x21, 0x11, &[0; 12])[..20].to_vec(), Some(Problem::Malformed)),
            (version_2(0x21, 0x11, &[0; MAX_VERSION_2 + 1]), Some(Problem::TooLong)),
            (Vec::new(), None),
        ] {
            for piece in [1, 4096] {
                assert_eq!(read_in_pieces(&sent, piece).await.0, Err(expected), "{sent:?}");
            }
        }
    }
}
