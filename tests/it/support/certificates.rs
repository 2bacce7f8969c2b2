//! Certificates, made for a test.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};

use super::server::Options;
use super::tokens::write;

/// Who signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub pem: String,
}

/// A certificate and its key.
pub struct Certified {
    /// The certificate.
    pub cert: String,
    /// The key.
    pub key: String,
}

impl Authority {
    /// A new one that nobody knows yet.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("valid");
        // OpenSSL takes a certificate whose issuer has the same name for one that has signed itself.
        params.distinguished_name.push(DnType::CommonName, "the authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for this machine, as a server and as a client.
    pub fn certify(&self) -> Certified {
        self.sign(CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("valid"))
    }

    /// One that was good until a while ago.
    pub fn certify_in_the_past(&self) -> Certified {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("valid");
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Certified {
        let key = KeyPair::generate().expect("a key");
        Certified { cert: params.signed_by(&key, &self.issuer).expect("signed").pem(), key: key.serialize_pem() }
    }
}

/// Writes a server's certificate and key to where [`with_tls`] has it read them.
pub fn write_pair(dir: &Path, pair: &Certified) {
    write(dir, "key.pem", &pair.key);
    write(dir, "cert.pem", &pair.cert);
}

/// With a certificate by this authority.
pub fn with_tls(options: Options, dir: &Path, authority: &Authority) -> Options {
    write_pair(dir, &authority.certify());
    let path = |name: &str| dir.join(name).to_str().expect("a path").to_owned();
    options.env("LEADFOLD_TLS_CERT", path("cert.pem")).env("LEADFOLD_TLS_KEY", path("key.pem"))
}
