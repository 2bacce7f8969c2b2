//! How a command proves to a server who it is, and the server to it.

use std::path::PathBuf;

use clap::Args;

/// What every client command takes beside the server's address. The token itself is in a file or in
/// `LEADFOLD_TOKEN`: `ps` would show an argument.
#[derive(Clone, Debug, Args)]
pub struct AccessArgs {
    /// File with the bearer token to call with; or put the token into LEADFOLD_TOKEN [default: none]
    #[arg(long, env = "LEADFOLD_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Who signs the server's certificate, in a PEM file [default: the public authorities]
    #[arg(long, env = "LEADFOLD_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Certificate to show to a server that asks for one, in a PEM file [default: none]
    #[arg(long, env = "LEADFOLD_CLIENT_CERT", value_name = "FILE", requires = "client_key")]
    pub client_cert: Option<PathBuf>,
    /// Private key of that certificate, in a PEM file [default: none]
    #[arg(long, env = "LEADFOLD_CLIENT_KEY", value_name = "FILE", requires = "client_cert")]
    pub client_key: Option<PathBuf>,
}
