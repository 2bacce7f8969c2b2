//! What the listener refuses itself, before any service sees it: one JSON line for the peer, and one line of the log.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header};

/// Of one request: how many headers, and how many bytes of them with the request line, as HTTP/1.1 writes them.
pub(super) const MAX_HEADERS: usize = 100;
pub(super) const MAX_HEADER_BYTES: usize = 64 * 1024;

/// A request that is not answered by a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) error: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }

    pub(super) fn log(&self, listener: &'static str) {
        tracing::warn!(listener, status = self.status.as_u16(), error = self.error, "request refused");
    }

    /// The body of its answer.
    pub(super) fn to_json(&self) -> Bytes {
        format!("{}\n", serde_json::json!({ "error": self.error })).into()
    }

    /// Its answer but for the body.
    pub(super) fn to_head(&self) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    /// The whole answer as HTTP/1.1 writes it, after which the connection ends.
    pub(super) fn to_http1(&self) -> Bytes {
        let (body, reason) = (self.to_json(), self.status.canonical_reason().unwrap_or_default());
        let mut text = format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            self.status.as_u16(),
            body.len()
        )
        .into_bytes();
        text.extend_from_slice(&body);
        text.into()
    }
}

/// Checks what HTTP demands of every request, and hyper does not.
pub(super) fn check(parts: &Parts) -> Result<(), Refusal> {
    match parts.version {
        Version::HTTP_2 => check_size(parts),
        version => {
            check_transfer_encoding(&parts.headers)?;
            if version == Version::HTTP_11 { check_host(&parts.headers) } else { Ok(()) }
        }
    }
}

/// By HTTP/1 hyper has checked it before.
fn check_size(parts: &Parts) -> Result<(), Refusal> {
    // HTTP/1.1 has the authority in a header.
    let authority = parts.uri.authority().filter(|_| !parts.headers.contains_key(header::HOST));
    let line = parts.method.as_str().len() + parts.uri.path_and_query().map_or(1, |path| path.as_str().len()) + " HTTP/1.1\r\n ".len();
    let headers = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    let bytes =
        line + headers.sum::<usize>() + authority.map_or(0, |authority| authority.as_str().len() + "host: \r\n".len()) + "\r\n".len();
    if parts.headers.len() + usize::from(authority.is_some()) > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        return Err(too_large());
    }
    Ok(())
}

pub(super) fn too_large() -> Refusal {
    let error = format!("the headers are too large: at most {MAX_HEADERS} headers and {} KiB in all", MAX_HEADER_BYTES / 1024);
    Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, error)
}

/// hyper reads every body whose last coding is `chunked`, and leaves the other codings in it.
fn check_transfer_encoding(headers: &HeaderMap) -> Result<(), Refusal> {
    let lines = headers.get_all(header::TRANSFER_ENCODING).iter();
    let codings: Vec<_> = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii).collect();
    match codings.iter().filter(|coding| !coding.is_empty()).collect::<Vec<_>>()[..] {
        [] => Ok(()),
        [chunked] if chunked.eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "the transfer encoding is not understood: chunked alone is")),
    }
}

/// RFC 9112, 3.2: exactly one in every request.
fn check_host(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let bad = |error| Err(Refusal::new(StatusCode::BAD_REQUEST, error));
    match (hosts.next(), hosts.next()) {
        (None, _) => bad("the request has no host header"),
        (Some(_), Some(_)) => bad("the request has more than one host header"),
        (Some(host), None) if host.is_empty() => Ok(()),
        (Some(host), None) => match http::uri::Authority::try_from(host.as_bytes()) {
            Ok(authority) if !authority.as_str().contains('@') => Ok(()),
            _ => bad("the host header is not the name of a host"),
        },
    }
}

/// Whether a list in headers, such as that of `connection` or `expect`, has this member.
pub(super) fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let lines = headers.get_all(name).iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .any(|member| member.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(version: Version, headers: &[(&'static str, &str)]) -> Parts {
        let mut request = Request::builder().version(version).uri("http://h/webhooks/omniai");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn every_request_names_one_host() {
        let status =
            |headers: &[(&'static str, &str)]| check(&parts(Version::HTTP_11, headers)).err().map(|refusal| refusal.status.as_u16());
        for good in ["h", "h:80", "[::1]:80", "127.0.0.1", "", "H.example"] {
            assert_eq!(status(&[("host", good)]), None, "{good}");
        }
        for bad in ["a b", "h/x", "user@h", "h:80:80"] {
            assert_eq!(status(&[("host", bad)]), Some(400), "{bad}");
        }
        assert_eq!(status(&[]), Some(400));
        assert_eq!(status(&[("host", "h"), ("host", "h")]), Some(400));
        assert_eq!(check(&parts(Version::HTTP_10, &[])), Ok(()));
        assert_eq!(check(&parts(Version::HTTP_2, &[])), Ok(()));
    }

    #[test]
    fn only_chunks_are_understood() {
        let status = |codings: &[&str]| {
            let headers: Vec<_> = [("host", "h")].into_iter().chain(codings.iter().map(|coding| ("transfer-encoding", *coding))).collect();
            check(&parts(Version::HTTP_11, &headers)).err().map(|refusal| refusal.status.as_u16())
        };
        for good in [&["chunked"][..], &["Chunked"], &[" chunked ,"], &[]] {
            assert_eq!(status(good), None, "{good:?}");
        }
        for bad in [&["gzip, chunked"][..], &["gzip", "chunked"], &["identity, chunked"], &["chunked, chunked"], &["identity"]] {
            assert_eq!(status(bad), Some(501), "{bad:?}");
        }
    }

    #[test]
    fn headers_have_the_same_limits_by_http_2() {
        let status =
            |headers: &[(&'static str, &str)]| check(&parts(Version::HTTP_2, headers)).err().map(|refusal| refusal.status.as_u16());
        assert_eq!(status(&[("x", &"y".repeat(MAX_HEADER_BYTES - 100))]), None);
        assert_eq!(status(&[("x", &"y".repeat(MAX_HEADER_BYTES))]), Some(431));
        assert_eq!(status(&vec![("x", "y"); MAX_HEADERS - 1]), None);
        assert_eq!(status(&vec![("x", "y"); MAX_HEADERS]), Some(431), "the authority is one of them");
    }

    #[test]
    fn members_of_lists_are_found_whatever_their_case() {
        let headers = parts(Version::HTTP_11, &[("expect", "x, 100-Continue ")]).headers;
        assert!(has_token(&headers, header::EXPECT, "100-continue") && !has_token(&headers, header::EXPECT, "100"));
    }
}
