//! What stands between a client and the servers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::servers::State;
use crate::support::certificates::Authority;
use crate::support::envoy::Envoy;
use crate::support::proxies::{Program, ReverseProxy, Traffic};

/// What stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    Direct,
    Nginx,
    Haproxy,
    Envoy,
    /// Clients speak TLS to it.
    EnvoyWithTls,
}

impl Front {
    pub const PROXIES: [Self; 4] = [Self::Nginx, Self::Haproxy, Self::Envoy, Self::EnvoyWithTls];
}

/// It stands there.
pub struct Opened {
    /// Where each server is reached.
    pub addresses: BTreeMap<State, String>,
    /// Whom clients trust; none: there is no TLS.
    pub ca: Option<PathBuf>,
    _proxies: Vec<ReverseProxy>,
    _envoy: Option<Envoy>,
    _dir: Option<TempDir>,
}

/// Puts it in front of these servers. None: it is not installed.
pub fn open(front: Front, traffic: Traffic, servers: BTreeMap<State, String>, clients: &Path) -> Option<Opened> {
    let mut opened = Opened { addresses: servers.clone(), ca: None, _proxies: Vec::new(), _envoy: None, _dir: None };
    match front {
        Front::Direct => {}
        Front::Nginx | Front::Haproxy => {
            let program = if front == Front::Nginx { Program::Nginx } else { Program::Haproxy };
            for (state, server) in servers {
                let proxy = ReverseProxy::start(program, traffic, &server)?;
                opened.addresses.insert(state, proxy.address.clone());
                opened._proxies.push(proxy);
            }
        }
        Front::Envoy | Front::EnvoyWithTls => {
            let authority = (front == Front::EnvoyWithTls).then(Authority::new);
            let routes: Vec<_> = servers.values().map(|server| (traffic, server.as_str())).collect();
            let envoy = Envoy::start(clients, &routes, authority.as_ref().map(Authority::certify).as_ref())?;
            opened.addresses = servers.keys().copied().zip(envoy.addresses.iter().cloned()).collect();
            opened._envoy = Some(envoy);
            if let Some(authority) = authority {
                let dir = tempfile::tempdir().expect("a temporary directory");
                let path = dir.path().join("ca.pem");
                std::fs::write(&path, &authority.pem).expect("a file");
                opened.ca = Some(path);
                opened._dir = Some(dir);
            }
        }
    }
    Some(opened)
}
