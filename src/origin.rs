//! Which web pages may send requests here.
//!
//! A browser sends requests for any page that it shows, to any address that it can reach, loopback too. Two checks keep
//! foreign pages out, and every listener uses these:
//! - **The page's origin** ([`Guard::check_origin`]): browsers name it in `Sec-Fetch-Site` or `Origin`. Only pages of this
//!   very listener, and of the origins that were allowed, may call. What is no browser names neither.
//! - **The host** ([`Guard::check_host`]): a page whose own host name resolves to this address (DNS rebinding) has the
//!   same origin as this listener. So a listener that asks for no credential answers only to IP addresses, `localhost`
//!   and the names of `--allowed-host`: only somebody else's name can be made to resolve here. Where a credential is
//!   asked for, such a page has none.

use std::net::IpAddr;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Decides which requests may come from a page.
#[derive(Clone, Debug)]
pub struct Guard {
    /// The host names that are answered to; none: any.
    hosts: Option<Arc<[String]>>,
    /// Other origins whose pages may call.
    origins: Arc<[String]>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no host, or several.
    #[error("the request has to name one host")]
    NoHost,
    /// The host is not known to be ours.
    #[error(
        "this host name is not known here: use an IP address or localhost, or start leadfold with --allowed-host and this name, or with \
         a file of tokens or secrets"
    )]
    UnknownHost,
    /// Another page sent it.
    #[error("web pages of other origins may not call this: only those of the same origin may, and those that --cors-origin names")]
    OtherOrigin,
}

impl Guard {
    /// `allowed_hosts` in lower case; they count only where requests need no credential. `allowed_origins` as browsers
    /// write them.
    pub fn new(allowed_hosts: &[String], allowed_origins: &[String], needs_credential: bool) -> Self {
        Self { hosts: (!needs_credential).then(|| allowed_hosts.into()), origins: allowed_origins.into() }
    }

    /// Checks the host and the origin.
    ///
    /// # Errors
    /// The request is to be refused.
    pub fn check<B>(&self, request: &Request<B>) -> Result<(), Refused> {
        if is_from_the_network(request) {
            return Ok(());
        }
        self.check_host(request)?;
        self.check_origin(request)
    }

    /// Checks that the request was sent to a name that is known to be ours.
    ///
    /// # Errors
    /// It was not, or it names no host.
    pub fn check_host<B>(&self, request: &Request<B>) -> Result<(), Refused> {
        let Some(names) = &self.hosts else { return Ok(()) };
        // A header and an authority (HTTP/2) may both be there: each has to be known.
        let header = host_header(request.headers())?;
        if header.is_none() && request.uri().authority().is_none() {
            return Err(Refused::NoHost);
        }
        let all_known = header.iter().chain(request.uri().authority()).all(|named| is_known(names, named.host()));
        if all_known { Ok(()) } else { Err(Refused::UnknownHost) }
    }

    /// Checks that no foreign page sent the request.
    ///
    /// # Errors
    /// One did.
    pub fn check_origin<B>(&self, request: &Request<B>) -> Result<(), Refused> {
        let headers = request.headers();
        let (site, origin) = (headers.get(SEC_FETCH_SITE), headers.get(header::ORIGIN));
        // No browser sends one of them twice.
        if headers.get_all(SEC_FETCH_SITE).iter().count() > 1 || headers.get_all(header::ORIGIN).iter().count() > 1 {
            return Err(Refused::OtherOrigin);
        }
        let is_allowed = |origin: &HeaderValue| self.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes());
        let is_fine = match (site, origin) {
            (_, Some(origin)) if is_allowed(origin) => true,
            // A proxy may have changed the host: the browser knows better.
            (Some(site), _) => site.as_bytes() == b"same-origin",
            (None, Some(origin)) => {
                let there = origin.to_str().ok().and_then(|origin| origin.split_once("://")?.1.parse::<Authority>().ok());
                let here = host_header(headers)?.or_else(|| request.uri().authority().cloned());
                there.is_some() && there == here
            }
            (None, None) => true,
        };
        if is_fine { Ok(()) } else { Err(Refused::OtherOrigin) }
    }
}

/// Whether no page sent a request, and it was sent to a name without a dot, or to none. Such a name is that of a machine or
/// a service of the same network, as containers and proxies have them, and cannot be made to resolve here by somebody else.
fn is_from_the_network<B>(request: &Request<B>) -> bool {
    let headers = request.headers().get_all(header::HOST).iter().map(|host| host.to_str().ok());
    let mut hosts = headers.chain(request.uri().authority().map(|authority| Some(authority.as_str())));
    let is_local = |host: &str| !host.is_empty() && !host.contains(['.', '@', '[', '%']);
    !is_of_a_page(request.headers()) && hosts.all(|host| host.is_some_and(is_local))
}

/// Whether a browser sent a request for a page: those name the page's origin in every request that is not a GET or HEAD.
pub fn is_of_a_page(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.contains_key(SEC_FETCH_SITE)
}

/// The one `Host` header, if there is any.
fn host_header(headers: &HeaderMap) -> Result<Option<Authority>, Refused> {
    let mut values = headers.get_all(header::HOST).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(host), None) => host.to_str().ok().and_then(|host| host.parse().ok()).map(Some).ok_or(Refused::NoHost),
        (Some(_), Some(_)) => Err(Refused::NoHost),
    }
}

/// IP addresses and `localhost` resolve to what they are; the owner of any other name decides where it leads.
fn is_known(names: &[String], host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let is_address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    is_address || host == "localhost" || host.ends_with(".localhost") || names.contains(&host)
}

/// 403 with the reason in JSON.
impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = format!("{}\n", serde_json::json!({ "error": self.to_string() }));
        (StatusCode::FORBIDDEN, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, headers: &[(&'static str, &str)]) -> Request<()> {
        let mut request = Request::new(());
        *request.uri_mut() = uri.parse().expect("a URI");
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().expect("a value"));
        }
        request
    }

    #[test]
    fn without_a_credential_only_names_are_known_that_lead_nowhere_else() {
        let guard = |needs_credential| Guard::new(&["leads.example.com".to_owned()], &[], needs_credential);
        let (open, guarded) = (guard(false), guard(true));
        for good in ["localhost", "LOCALHOST:80", "board.localhost", "127.0.0.1", "10.1.2.3:8080", "[::1]", "[::1]:1", "Leads.example.com"]
        {
            for request in [request("/", &[("host", good)]), request(&format!("http://{good}/"), &[])] {
                assert_eq!((open.check_host(&request), guarded.check_host(&request)), (Ok(()), Ok(())), "{good}");
            }
        }
        for bad in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "1.leads.example.com", "evil.example:80"] {
            for request in [request("/", &[("host", bad)]), request(&format!("http://{bad}/"), &[])] {
                assert_eq!((open.check_host(&request), guarded.check_host(&request)), (Err(Refused::UnknownHost), Ok(())), "{bad}");
            }
        }
        for request in [
            request("/", &[]),
            request("/", &[("host", "")]),
            request("/", &[("host", "127.0.0.1"), ("host", "evil.example")]),
            request("/", &[("host", "a b")]),
        ] {
            assert_eq!(open.check_host(&request), Err(Refused::NoHost), "{request:?}");
        }
        // Both are given: both count.
        assert_eq!(open.check_host(&request("http://127.0.0.1/", &[("host", "evil.example")])), Err(Refused::UnknownHost));
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let guard = Guard::new(&[], &["https://desk.example".to_owned()], false);
        let check = |headers: &[(&'static str, &str)]| {
            let host = [("host", "127.0.0.1:9090")];
            guard.check_origin(&request("/", &host.iter().chain(headers).copied().collect::<Vec<_>>()))
        };
        for good in [
            &[][..],
            &[("sec-fetch-site", "same-origin")],
            &[("origin", "http://127.0.0.1:9090")],
            &[("origin", "https://desk.example")],
            &[("origin", "https://desk.example"), ("sec-fetch-site", "cross-site")],
        ] {
            assert_eq!(check(good), Ok(()), "{good:?}");
        }
        for site in ["cross-site", "same-site", "none", ""] {
            assert_eq!(check(&[("sec-fetch-site", site), ("origin", "http://127.0.0.1:9090")]), Err(Refused::OtherOrigin), "{site}");
        }
        for origin in ["http://127.0.0.1:9091", "http://localhost:9090", "https://evil.example", "null", "", "https://desk.example.evil"] {
            assert_eq!(check(&[("origin", origin)]), Err(Refused::OtherOrigin), "{origin}");
        }
        for twice in [
            &[("origin", "https://desk.example"), ("origin", "https://evil.example")][..],
            &[("origin", "http://127.0.0.1:9090"), ("origin", "https://evil.example")],
            &[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        ] {
            assert_eq!(check(twice), Err(Refused::OtherOrigin), "{twice:?}");
        }
        assert_eq!(guard.check_origin(&request("http://[::1]:1/", &[("origin", "http://[::1]:1")])), Ok(()), "as HTTP/2 names the host");
    }
}
