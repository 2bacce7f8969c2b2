//! Who may not get at the leads: other pages in the same browser, and names that were bent to lead here.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Settings;

/// The host names that the board answers to; `None`: any, for without a token none of them is of use.
#[derive(Clone, Debug)]
pub(super) struct Hosts(Option<Arc<[String]>>);

impl Hosts {
    pub(super) fn new(settings: &Settings) -> Self {
        Self((!settings.tokens).then(|| settings.hosts.clone().into()))
    }

    /// Addresses and `localhost` cannot be bent: only who owns a name can let it lead here.
    fn know(&self, host: &str) -> bool {
        let Some(names) = &self.0 else { return true };
        let host = host.to_ascii_lowercase();
        let is_address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
        is_address || host == "localhost" || host.ends_with(".localhost") || names.contains(&host)
    }
}

/// The host that a request was sent to, and its port.
fn authority(request: &Request) -> Option<Authority> {
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()?.parse().ok());
    named.or_else(|| request.uri().authority().cloned())
}

/// axum middleware: refuses requests to a name that is not known to be ours. A page whose own name leads to this
/// address (DNS rebinding) would be of the same origin.
pub(super) async fn known_host(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    match authority(&request) {
        Some(authority) if hosts.know(authority.host()) => next.run(request).await,
        Some(_) => refuse("open the board by an IP address or as localhost, or start leadfold with --board-host and this name"),
        None => refuse("the request names no host"),
    }
}

/// axum middleware: refuses what another page's script, form or link sends.
pub(super) async fn same_origin(request: Request, next: Next) -> Response {
    if comes_from_elsewhere(request.headers(), authority(&request).as_ref()) {
        return refuse("only the board itself may call this; other pages may where --cors-origin names them, on the gRPC listener");
    }
    next.run(request).await
}

/// Browsers tell whether a request crosses sites, if they trust the way to here; otherwise there is its origin. What
/// is no browser tells neither.
fn comes_from_elsewhere(headers: &HeaderMap, here: Option<&Authority>) -> bool {
    if let Some(site) = headers.get(HeaderName::from_static("sec-fetch-site")) {
        return site.as_bytes() != b"same-origin";
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let there = origin.to_str().ok().and_then(|origin| origin.split_once("://")?.1.parse::<Authority>().ok());
    there.is_none() || there.as_ref() != here
}

fn refuse(why: &'static str) -> Response {
    (StatusCode::FORBIDDEN, format!("{why}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_tokens_only_names_that_cannot_be_bent_are_known() {
        let settings = |tokens| Settings { tokens, hosts: vec!["leads.example.com".to_owned()], webhook_port: 1 };
        let (open, guarded) = (Hosts::new(&settings(false)), Hosts::new(&settings(true)));
        for good in ["localhost", "LOCALHOST", "board.localhost", "127.0.0.1", "10.1.2.3", "[::1]", "Leads.example.com"] {
            assert!(open.know(good) && guarded.know(good), "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "1.leads.example.com", ""] {
            assert!(!open.know(bad) && guarded.know(bad), "{bad}");
        }
    }

    #[test]
    fn other_origins_are_told_by_what_browsers_send() {
        let here = Authority::from_static("127.0.0.1:9090");
        let from = |headers: &[(&'static str, &'static str)]| {
            let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a value"))).collect();
            comes_from_elsewhere(&headers, Some(&here))
        };
        assert!(!from(&[]) && !from(&[("sec-fetch-site", "same-origin")]) && !from(&[("origin", "http://127.0.0.1:9090")]));
        for site in ["cross-site", "same-site", "none"] {
            assert!(from(&[("sec-fetch-site", site), ("origin", "http://127.0.0.1:9090")]), "{site}");
        }
        for origin in ["http://127.0.0.1:9091", "http://localhost:9090", "https://evil.example", "null", ""] {
            assert!(from(&[("origin", origin)]), "{origin}");
        }
    }
}
