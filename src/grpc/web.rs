//! gRPC-Web, for browsers: the same service behind another framing, and the pages that may call it.

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use http::{HeaderName, HeaderValue, Method, Request, header};
use tonic_web::GrpcWebLayer;
use tower::{Layer, ServiceExt};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// What a page may read of an answer beyond its body.
const EXPOSED: [HeaderName; 3] =
    [HeaderName::from_static("grpc-status"), HeaderName::from_static("grpc-message"), HeaderName::from_static("grpc-status-details-bin")];

/// Serves gRPC-Web next to gRPC, to pages of these origins. With none, browsers keep every page out.
///
/// # Errors
/// An origin that cannot stand in a header.
pub fn routes(grpc: Router, origins: &[String]) -> anyhow::Result<Router> {
    let origins = origins.iter().map(|origin| HeaderValue::from_str(origin)).collect::<Result<Vec<_>, _>>()?;
    let cors = (!origins.is_empty()).then(|| {
        CorsLayer::new()
            .allow_origin(AllowOrigin::list(origins))
            .allow_methods([Method::POST])
            .allow_headers(tower_http::cors::AllowHeaders::mirror_request())
            .expose_headers(EXPOSED)
            .max_age(std::time::Duration::from_secs(3600))
    });
    // gRPC itself passes by: its streams carry no layer that they don't need.
    let web = GrpcWebLayer::new().layer(grpc.clone());
    let web = Router::new().fallback_service(web);
    let web = match cors {
        Some(cors) => web.layer(cors),
        None => web,
    };
    let routes = move |request: Request<Body>| {
        let (grpc, web) = (grpc.clone(), web.clone());
        async move {
            let router = if is_web(&request) { web } else { grpc };
            // Routers cannot fail.
            router.oneshot(request).await.into_response()
        }
    };
    Ok(Router::new().fallback(routes))
}

/// gRPC-Web, or a browser's question whether it may.
fn is_web<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    request.method() == Method::OPTIONS || content_type.starts_with(b"application/grpc-web")
}
