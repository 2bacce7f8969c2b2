//! Callers that have tokens, and the file that says what they may do.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use leadfold::api::lead_service_client::LeadServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::server::{Options, Server};

/// Sees every workspace, and may delete.
pub const ALL: &str = "token-canary-of-all-workspaces-5d1f";
/// The workspaces of two tokens that see no more, and of one that may delete there.
pub const ONE: &str = "token-canary-of-workspace-one-77aa";
/// Of the other workspace.
pub const OTHER: &str = "token-canary-of-workspace-other-c3";
/// The workspaces.
pub const WORKSPACE_ONE: &str = "workspace-one";
/// The other.
pub const WORKSPACE_OTHER: &str = "workspace-other";

/// The usual file: three tokens.
pub fn usual() -> String {
    [entry(ALL, &["*"], true), entry(ONE, &[WORKSPACE_ONE], false), entry(OTHER, &[WORKSPACE_OTHER], true)].concat()
}

/// One token of a file.
pub fn entry(token: &str, workspaces: &[&str], delete: bool) -> String {
    format!("[[token]]\nname = \"name of {}\"\ntoken = \"{token}\"\nworkspaces = {workspaces:?}\ndelete = {delete}\n", &token[13..])
}

/// Writes a file of secrets, at once or not at all.
pub fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let (path, beside) = (dir.join(name), dir.join(format!("{name}.new")));
    std::fs::write(&beside, text).expect("a file");
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600)).expect("its permissions");
    std::fs::rename(&beside, &path).expect("its name");
    path
}

/// With the usual tokens.
pub fn with_tokens(options: Options, dir: &Path) -> Options {
    let path = write(dir, "tokens.toml", &usual());
    options.env("LEADFOLD_TOKENS_FILE", path.to_str().expect("a path"))
}

/// Adds a token to every call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    /// With this value of the header; empty: without one.
    pub fn header(value: &str) -> Self {
        Self((!value.is_empty()).then(|| value.parse().expect("a value")))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// A client that has a token.
pub type Client = LeadServiceClient<InterceptedService<Channel, Bearer>>;

/// A client with a token, on a connection of its own.
pub fn client(server: &Server, token: &str) -> Client {
    client_with(server, &format!("Bearer {token}"))
}

/// A client with any `authorization`; empty: with none.
pub fn client_with(server: &Server, header: &str) -> Client {
    LeadServiceClient::with_interceptor(server.channel(), Bearer::header(header))
}
