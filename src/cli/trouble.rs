//! Why a server cannot be talked to, and what to do: the cause of a failed connection, and what speaks at an address that
//! answers otherwise than it should.

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use http::Uri;
use hyper_rustls::ConfigBuilderExt as _;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::text;
use crate::auth::files;

/// How long each step of a look at an address may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// The most that is read of an answer.
const MAX_ANSWER: u64 = 4096;

/// Why there is no connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nobody listens.
    Refused,
    /// The two sides do not agree on how to encrypt, or do not trust each other: trying again does not help.
    Tls(String),
    /// Anything else, in words.
    Other(String),
}

/// What is at the bottom of a failure.
pub(super) fn trouble(error: &(dyn Error + 'static)) -> Trouble {
    let mut is_lookup = false;
    let mut innermost = error;
    loop {
        if let Some(tls) = innermost.downcast_ref::<rustls::Error>() {
            return Trouble::Tls(tls_advice(tls));
        }
        let io = innermost.downcast_ref::<io::Error>();
        if io.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
            return Trouble::Refused;
        }
        is_lookup |= innermost.to_string() == "dns error";
        // An io::Error names as its source not what it holds, but the source of that.
        let held = io.and_then(|error| error.get_ref()).map(|held| held as &(dyn Error + 'static));
        match held.or_else(|| innermost.source()) {
            Some(source) => innermost = source,
            None => break,
        }
    }
    let words = text::plain(&innermost.to_string());
    Trouble::Other(if is_lookup { format!("its host is not known: {words}") } else { words })
}

fn tls_advice(error: &rustls::Error) -> String {
    use rustls::AlertDescription::{BadCertificate, CertificateRequired, CertificateUnknown, UnknownCA};
    match error {
        rustls::Error::InvalidMessage(_) => "it does not speak TLS: write http:// if it is not to be encrypted".to_owned(),
        rustls::Error::AlertReceived(CertificateRequired | BadCertificate | CertificateUnknown | UnknownCA) => {
            format!("it wants a certificate that it trusts from its clients: give --client-cert and --client-key ({error})")
        }
        rustls::Error::InvalidCertificate(invalid) => match invalid {
            // The signature is a bad one where two authorities have the same name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is signed by an authority that is not trusted here: if that is your own, name it with --ca-file".to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("its certificate is for another name: call it by a name that the certificate has ({error})")
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired: renew it, and see whether the clock here is right".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet: see whether the clocks are right".to_owned()
            }
            other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
                "its certificate is one of an authority (CA:TRUE), which cannot be a server's: make one with \
                 `openssl req -x509 … -addext basicConstraints=critical,CA:FALSE`, and name that with --ca-file"
                    .to_owned()
            }
            other => format!("its certificate cannot be used: {other}"),
        },
        other => format!("TLS failed: {other}"),
    }
}

/// TLS that trusts the authorities of this file, or those of the web.
pub(super) fn trusting(ca_file: Option<&Path>) -> anyhow::Result<ClientConfig> {
    let Some(file) = ca_file else { return Ok(ClientConfig::builder().with_webpki_roots().with_no_client_auth()) };
    let mut roots = RootCertStore::empty();
    let said = || format!("--ca-file {}", file.display());
    let pem = files::read(file).context("--ca-file")?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.with_context(said)?).with_context(said)?;
    }
    if roots.is_empty() {
        bail!("{} has no certificate: give a PEM file", said());
    }
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// Whether an address is of this machine only: nobody else sees what is sent there.
pub(super) fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Looks at what speaks at an address, where it is not what was expected; `None`: it cannot be told.
pub(super) fn what_speaks(url: &Uri, ca_file: Option<&Path>) -> Option<String> {
    let is_encrypted = url.scheme_str() == Some("https");
    let ask = |path: &str| {
        let socket = connect(url, is_encrypted)?;
        if !is_encrypted {
            return converse(socket, url, path);
        }
        let name = ServerName::try_from(url.host()?.trim_start_matches('[').trim_end_matches(']').to_owned()).ok()?;
        converse(StreamOwned::new(ClientConnection::new(Arc::new(trusting(ca_file).ok()?), name).ok()?, socket), url, path)
    };
    let health = ask("/livez")?;
    const SPEAKS_TLS: &str = "speaks TLS: write https://";
    let says_so = health.windows(SPEAKS_TLS.len()).any(|window| window == SPEAKS_TLS.as_bytes());
    if health.starts_with(b"\x15\x03") || says_so {
        return Some(format!("it {SPEAKS_TLS}"));
    }
    let Some(health) = health.strip_prefix(b"HTTP/1.") else {
        return match health.is_empty() {
            true => None,
            false => Some("something speaks there that is neither gRPC nor HTTP".to_owned()),
        };
    };
    let health = String::from_utf8_lossy(health);
    if health.contains("speaks gRPC") {
        return None;
    }
    let status = |answer: &str| answer.split(' ').nth(1).unwrap_or_default().to_owned();
    let webhooks = ask("/webhooks/omniai").map(|answer| String::from_utf8_lossy(&answer).into_owned()).unwrap_or_default();
    Some(if health.contains("/webhooks/omniai") || status(&webhooks) == "405" {
        "that is where leadfold takes webhooks (--http-addr)".to_owned()
    } else if status(&health) == "200" && health.ends_with("\r\n\r\nok\n") {
        "that is where leadfold serves its board and its health (--admin-addr)".to_owned()
    } else {
        format!("a web server answers there (status {}), and no leadfold, or a proxy that passes nothing on", status(&health))
    })
}

fn connect(url: &Uri, is_encrypted: bool) -> Option<TcpStream> {
    let host = url.host()?.trim_start_matches('[').trim_end_matches(']');
    let port = url.port_u16().unwrap_or(if is_encrypted { 443 } else { 80 });
    let socket = (host, port).to_socket_addrs().ok()?.find_map(|address| TcpStream::connect_timeout(&address, PATIENCE).ok())?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    socket.set_write_timeout(Some(PATIENCE)).ok()?;
    Some(socket)
}

/// Asks for a path, and reads what comes, as far as it comes.
fn converse(mut stream: impl Read + Write, url: &Uri, path: &str) -> Option<Vec<u8>> {
    let host = url.authority()?.as_str();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    // In one piece: some answer the first, and hang up.
    let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.flush());
    let mut answer = Vec::new();
    // What came before it ended or fell silent is enough.
    let _ = stream.take(MAX_ANSWER).read_to_end(&mut answer);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_machine_are_private() {
        for (url, is) in [
            ("http://localhost:1", true),
            ("http://LOCALHOST", true),
            ("http://board.localhost", true),
            ("http://127.3.2.1:1", true),
            ("http://[::1]:1", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example", false),
            ("http://[::2]:1", false),
        ] {
            assert_eq!(is_loopback(&Uri::from_static(url)), is, "{url}");
        }
    }
}
