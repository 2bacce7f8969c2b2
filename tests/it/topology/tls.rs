//! Connections to Redis that are encrypted.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::fresh_id;
use crate::support::redis::{PASSWORD, RedisServer};
use crate::support::server::{Options, Server};

/// An authority, and what it signed, as files.
fn certificates(dir: &Path) {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    // OpenSSL takes a certificate for self-signed whose authority is called as itself.
    params.distinguished_name.push(DnType::CommonName, "authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
    std::fs::write(dir.join("ca.pem"), authority.pem()).expect("a file");
    for (name, host) in [("server", "127.0.0.1"), ("elsewhere", "redis.example"), ("client", "leadfold")] {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &authority).expect("a certificate");
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).expect("a file");
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).expect("a file");
    }
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().expect("a path").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_spoken_to_over_tls_with_a_certificate_of_ours_and_never_to_a_stranger() {
    let (dir, other) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    certificates(dir.path());
    certificates(other.path());
    let file = |name: &str| path(dir.path(), name);
    let redis = RedisServer::start_with_tls(&["--tls-auth-clients", "yes"], &file("ca.pem"), &file("server.pem"), &file("server.key"));
    let url = redis.tls_url();
    let options = |ca: &str, cert: &str, key: &str| {
        let options = Options::at(&url).env("LEADFOLD_REDIS_CA_FILE", ca).env("LEADFOLD_SPOOL_MAX_BYTES", "0");
        options.env("LEADFOLD_REDIS_CERT_FILE", cert).env("LEADFOLD_REDIS_KEY_FILE", key)
    };
    let server = Server::start(&options(&file("ca.pem"), &file("client.pem"), &file("client.key")));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a", SAMPLE_TIME)).await;
    assert_eq!(server.lead(&lead_id).await.message_count, 1);
    drop(server);
    let strange = options(&path(other.path(), "ca.pem"), &file("client.pem"), &file("client.key")).refused();
    assert!(strange.contains("invalid peer certificate") && !strange.contains(PASSWORD), "an authority that did not sign it: {strange}");
    let strange = options(&file("ca.pem"), &path(other.path(), "client.pem"), &path(other.path(), "client.key")).refused();
    assert!(strange.contains("Redis"), "a certificate that Redis does not know: {strange}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_name_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    certificates(dir.path());
    let file = |name: &str| path(dir.path(), name);
    let redis = RedisServer::start_with_tls(&["--tls-auth-clients", "no"], &file("ca.pem"), &file("elsewhere.pem"), &file("elsewhere.key"));
    let options = Options::at(&redis.tls_url()).env("LEADFOLD_REDIS_CA_FILE", file("ca.pem")).env("LEADFOLD_SPOOL_MAX_BYTES", "0");
    let said = options.refused();
    assert!(said.contains("not valid for name"), "{said}");
}
