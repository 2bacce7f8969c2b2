//! The certificates that listeners begin with, and what to say where there are none.

use std::sync::Arc;

use crate::auth::files::Watched;
use crate::config::{ServeConfig, TlsConfig, is_loopback};
use crate::listener::{Tls, TlsFiles};

/// What all listeners show, and what the one of gRPC shows and asks for; both are read again when they change.
pub(super) fn open(config: &TlsConfig) -> anyhow::Result<(Arc<Tls>, Arc<Tls>)> {
    let TlsConfig { files, grpc_client_ca } = config;
    let watched = Watched::new([&files.cert, &files.key].into_iter().chain(grpc_client_ca).cloned());
    let tls = Arc::new(Tls::open(files.clone())?);
    let for_grpc = match grpc_client_ca {
        None => Arc::clone(&tls),
        Some(ca) => Arc::new(Tls::open(TlsFiles { client_ca: Some(ca.clone()), ..files.clone() })?),
    };
    let again = [Arc::clone(&tls), Arc::clone(&for_grpc)];
    watched.spawn("TLS certificates", move || again.iter().try_for_each(|tls| tls.reload()));
    Ok((tls, for_grpc))
}

/// Tokens and secrets that travel where others can listen.
pub(super) fn warn_of_the_clear(config: &ServeConfig) {
    let addresses = [("http", config.http_addr), ("grpc", config.grpc_addr), ("admin", config.admin_addr)];
    for (listener, address) in addresses.into_iter().filter(|(_, address)| config.tls.is_none() && !is_loopback(*address)) {
        tracing::warn!(listener, %address, "NOT ENCRYPTED: secrets, tokens and leads can be read on their way here; name a --tls-cert");
    }
}
