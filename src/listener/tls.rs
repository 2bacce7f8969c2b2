//! Certificates of the listeners, which can be replaced while they serve.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::auth::files::{self, read_secret};

/// Where the certificates are: PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The chain that is shown to peers, its own certificate first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who signs the certificates that peers have to show; none: they need not show any.
    pub client_ca: Option<PathBuf>,
}

/// What a listener shows, and asks for.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    config: ArcSwap<ServerConfig>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read or used; which, and why.
    pub fn open(files: TlsFiles) -> anyhow::Result<Self> {
        let config = ArcSwap::new(Arc::new(read(&files)?));
        Ok(Self { files, config })
    }

    /// Reads the files again. Connections that are open keep what they began with.
    ///
    /// # Errors
    /// A file cannot be used: what was read before stays in force.
    pub fn reload(&self) -> anyhow::Result<()> {
        self.config.store(Arc::new(read(&self.files)?));
        Ok(())
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.config.load_full()).accept(stream).await
    }
}

fn read(files: &TlsFiles) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("--grpc-client-ca", path)? {
                roots.add(certificate).with_context(|| format!("--grpc-client-ca {}", path.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.context("--grpc-client-ca")?)
        }
    };
    let chain = certificates("--tls-cert", &files.cert)?;
    let text = read_secret(&files.key).context("--tls-key")?;
    // What the parser says might quote the key.
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_| anyhow!("--tls-key {} has no private key in PEM form", files.key.display()))?;
    let mut config = builder
        .with_single_cert(chain, key)
        .with_context(|| format!("the key of --tls-key does not fit the certificate of --tls-cert {}", files.cert.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(flag: &str, path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let name = path.display();
    let pem = files::read(path).with_context(|| flag.to_owned())?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|_| anyhow!("{flag} {name} is not in PEM form"))?;
    if certificates.is_empty() {
        bail!("{flag} {name} has no certificate in PEM form");
    }
    Ok(certificates)
}
