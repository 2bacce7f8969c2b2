//! What the gRPC port speaks: gRPC, and gRPC-Web for browsers, which is the same service behind another framing. The rest
//! is refused as HTTP does it.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header};
use tonic_web::GrpcWebLayer;
use tower::{Layer, ServiceExt};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::base64_body::Base64Body;
use super::observe;
use crate::origin::{self, Guard, Refused};

/// What a page may read of an answer beyond its body.
const EXPOSED: [HeaderName; 3] =
    [HeaderName::from_static("grpc-status"), HeaderName::from_static("grpc-message"), HeaderName::from_static("grpc-status-details-bin")];

/// gRPC-Web in base64, and in bytes.
const TEXT: &str = "application/grpc-web-text";
const BINARY: &str = "application/grpc-web+proto";

/// Where webhooks are taken, on another port.
const WEBHOOKS: &str = "/webhooks";
const WEBHOOK: &str = "/webhooks/omniai";

/// Serves gRPC-Web next to gRPC, to pages of these origins. With none, no foreign page may call. A webhook that is sent
/// here is told the port where it belongs. Without a guard, requests were checked before they come here.
///
/// **The host of plain gRPC over HTTP/2 is not checked** unless a page sent it: its clients dial whatever name their
/// network has, and no browser speaks HTTP/2 without TLS, where a certificate would have to fit the page's host name.
/// A browser names the page's origin with every POST, and then the host counts there too.
///
/// # Errors
/// An origin that cannot stand in a header.
pub fn routes(grpc: Router, origins: &[String], guard: Option<Guard>, webhook_port: u16) -> anyhow::Result<Router> {
    let origins = origins.iter().map(|origin| HeaderValue::from_str(origin)).collect::<Result<Vec<_>, _>>()?;
    let cors = (!origins.is_empty()).then(|| {
        CorsLayer::new()
            .allow_origin(AllowOrigin::list(origins))
            .allow_methods([Method::POST])
            .allow_headers(tower_http::cors::AllowHeaders::mirror_request())
            .expose_headers(EXPOSED)
            .max_age(Duration::from_secs(3600))
    });
    // gRPC itself passes by: its streams carry no layer that they don't need.
    let web = Router::new().fallback_service(GrpcWebLayer::new().layer(grpc.clone()));
    let (web, answers_preflights) = match cors {
        Some(cors) => (web.layer(cors), true),
        None => (web, false),
    };
    let routes = move |mut request: Request<Body>| {
        let (grpc, web) = (grpc.clone(), web.clone());
        let protocol = guard.as_ref().map_or(Ok(()), |guard| check(guard, &request).map_err(Refusal::from));
        let protocol = protocol.and_then(|()| protocol_of(&request, answers_preflights, webhook_port));
        async move {
            let router = match protocol {
                Ok(Protocol::Grpc) => grpc,
                Ok(Protocol::Preflight) => web,
                Ok(Protocol::GrpcWeb(content_type)) => {
                    let answered_in = accepted(request.headers(), content_type);
                    if content_type.starts_with(TEXT) {
                        // The layer takes only one part of base64.
                        request = request.map(|body| Body::new(Base64Body::new(body)));
                    }
                    // The layer knows types only without parameters and in lower case.
                    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(BINARY));
                    request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static(answered_in));
                    web
                }
                Err(refusal) => return refusal.into_response(),
            };
            // Routers cannot fail.
            router.oneshot(request).await.into_response()
        }
    };
    Ok(Router::new().fallback(routes))
}

/// What a request speaks.
#[derive(Debug, PartialEq, Eq)]
enum Protocol {
    Grpc,
    /// gRPC-Web, with this content type.
    GrpcWeb(&'static str),
    /// A browser's question whether a page may call.
    Preflight,
}

/// A request that this port cannot answer as gRPC. Its sender may know nothing of gRPC, and would take a gRPC status
/// (which comes with HTTP's 200) for success.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    error: String,
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self { status: StatusCode::FORBIDDEN, error: refused.to_string() }
    }
}

/// Whether a page sent a request that it may not send.
fn check<B>(guard: &Guard, request: &Request<B>) -> Result<(), Refused> {
    let is_native = request.version() >= Version::HTTP_2 && matches!(by_content_type(request.headers()), Some(Protocol::Grpc));
    if is_native && !origin::is_of_a_page(request.headers()) { Ok(()) } else { guard.check(request) }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, error } = self;
        tracing::warn!(listener = "grpc", status = status.as_u16(), error, "request refused");
        let mut response = (status, format!("{}\n", serde_json::json!({ "error": error }))).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }
}

/// Finds out what a request speaks.
///
/// # Errors
/// Nothing that is served here.
fn protocol_of<B>(request: &Request<B>, answers_preflights: bool, webhook_port: u16) -> Result<Protocol, Refusal> {
    let is_preflight = request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if answers_preflights && is_preflight {
        return Ok(Protocol::Preflight);
    }
    let path = request.uri().path();
    let (is_rpc, is_post) = (observe::is_rpc(path), request.method() == Method::POST);
    let is_webhook = path == WEBHOOKS || path.strip_prefix(WEBHOOKS).is_some_and(|rest| rest.starts_with('/'));
    let (status, error) = match by_content_type(request.headers()) {
        Some(_) if !is_post => (StatusCode::METHOD_NOT_ALLOWED, "calls are made with POST only".to_owned()),
        Some(Protocol::Grpc) if request.version() < Version::HTTP_2 => (
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "gRPC needs HTTP/2, and this request came by HTTP/1: let proxies in between pass HTTP/2 on, or use gRPC-Web".to_owned(),
        ),
        Some(protocol) => return Ok(protocol),
        None if is_rpc && !is_post => (StatusCode::METHOD_NOT_ALLOWED, "calls are made with POST only".to_owned()),
        None if is_rpc => (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "this port speaks gRPC (application/grpc) and gRPC-Web (application/grpc-web+proto): the content type is neither".to_owned(),
        ),
        None if is_webhook && is_post => (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!(
                "this is the gRPC port, and it takes no webhooks: post events to {WEBHOOK} on port {webhook_port}, where this server's \
                 --http-addr listens"
            ),
        ),
        None => (
            StatusCode::NOT_FOUND,
            format!(
                "there is nothing at this path: this port speaks gRPC and gRPC-Web. Webhooks are taken at {WEBHOOK} on port \
                 {webhook_port}; health, metrics and the board are where this server's --admin-addr listens"
            ),
        ),
    };
    Err(Refusal { status, error })
}

/// The form of gRPC-Web that an answer is to have: the one that is accepted, else that of the request.
fn accepted(headers: &HeaderMap, content_type: &'static str) -> &'static str {
    let values: Vec<_> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let names = |form: &str| values.iter().any(|value| value.to_ascii_lowercase().contains(form));
    match (names("application/grpc-web"), names(TEXT)) {
        (_, true) => TEXT,
        (true, false) => BINARY,
        (false, false) => content_type,
    }
}

/// The protocol that a content type names: whatever its case and parameters, but one with messages in protobuf.
fn by_content_type(headers: &HeaderMap) -> Option<Protocol> {
    const WEB: [&str; 4] =
        ["application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text", "application/grpc-web-text+proto"];
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let essence = value.to_str().ok()?.split(';').next().unwrap_or_default().trim();
    if ["application/grpc", "application/grpc+proto"].iter().any(|grpc| essence.eq_ignore_ascii_case(grpc)) {
        return Some(Protocol::Grpc);
    }
    WEB.into_iter().find(|web| essence.eq_ignore_ascii_case(web)).map(Protocol::GrpcWeb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_are_read_whatever_their_case_and_parameters() {
        let read = |values: &[&'static str]| {
            let header = |value: &&'static str| (header::CONTENT_TYPE, HeaderValue::from_static(value));
            by_content_type(&values.iter().map(header).fold(HeaderMap::new(), |mut headers, (name, value)| {
                headers.append(name, value);
                headers
            }))
        };
        for grpc in
            ["application/grpc", "Application/GRPC", "application/grpc+proto", "application/grpc; charset=utf-8", "application/grpc;"]
        {
            assert_eq!(read(&[grpc]), Some(Protocol::Grpc), "{grpc}");
        }
        assert_eq!(read(&["application/grpc-web"]), Some(Protocol::GrpcWeb("application/grpc-web")));
        assert_eq!(read(&["Application/grpc-web+Proto ;charset=utf-8"]), Some(Protocol::GrpcWeb("application/grpc-web+proto")));
        assert_eq!(read(&["application/grpc-web-text"]), Some(Protocol::GrpcWeb("application/grpc-web-text")));
        for other in ["", "application/json", "application/grpcx", "application/grpc+json", "application/grpc-web+json", "text/plain"] {
            assert_eq!(read(&[other]), None, "{other}");
        }
        assert_eq!(read(&[]), None);
        assert_eq!(read(&["application/grpc", "text/plain"]), None);
    }
}
