//! Encryption of the listeners.

use std::path::PathBuf;

use clap::Args;

use crate::listener::TlsFiles;

/// The flags of TLS.
#[derive(Clone, Debug, Args)]
pub struct TlsArgs {
    /// Certificate chain of all listeners, in a PEM file that is read again when it changes [default: none, no TLS]
    #[arg(long, env = "LEADFOLD_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, in a PEM file [default: none]
    #[arg(long, env = "LEADFOLD_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Who signs the certificates that gRPC clients have to show, in a PEM file [default: none, they need none]
    #[arg(long, env = "LEADFOLD_GRPC_CLIENT_CA", value_name = "FILE")]
    pub grpc_client_ca: Option<PathBuf>,
}

/// The files of a listener that others may share.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// Of every listener.
    pub files: TlsFiles,
    /// The one of gRPC asks for certificates signed by these.
    pub grpc_client_ca: Option<PathBuf>,
}

impl TlsArgs {
    pub(super) fn validate(self, wrong: &mut Vec<String>) -> Option<TlsConfig> {
        match (self.tls_cert, self.tls_key) {
            (Some(cert), Some(key)) => {
                return Some(TlsConfig { files: TlsFiles { cert, key, client_ca: None }, grpc_client_ca: self.grpc_client_ca });
            }
            (Some(_), None) => wrong.push("--tls-cert needs its --tls-key".to_owned()),
            (None, Some(_)) => wrong.push("--tls-key needs its --tls-cert".to_owned()),
            (None, None) if self.grpc_client_ca.is_some() => {
                wrong.push("--grpc-client-ca asks for certificates, which needs TLS: name a --tls-cert and its --tls-key".to_owned());
            }
            (None, None) => {}
        }
        None
    }
}
