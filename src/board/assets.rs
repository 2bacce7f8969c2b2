//! The files of the page, compiled in.

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use super::schema;

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Each under `/board/`, where the page itself expects it.
const FILES: [(&str, &str, &str); 18] = [
    ("board.css", "text/css; charset=utf-8", include_str!("board.css")),
    ("lead.css", "text/css; charset=utf-8", include_str!("lead.css")),
    ("theme.css", "text/css; charset=utf-8", include_str!("theme.css")),
    ("icon.svg", "image/svg+xml", include_str!("icon.svg")),
    ("app.js", JAVASCRIPT, include_str!("app.js")),
    ("bars.js", JAVASCRIPT, include_str!("bars.js")),
    ("dom.js", JAVASCRIPT, include_str!("dom.js")),
    ("feed.js", JAVASCRIPT, include_str!("feed.js")),
    ("format.js", JAVASCRIPT, include_str!("format.js")),
    ("lead.js", JAVASCRIPT, include_str!("lead.js")),
    ("list.js", JAVASCRIPT, include_str!("list.js")),
    ("model.js", JAVASCRIPT, include_str!("model.js")),
    ("protobuf.js", JAVASCRIPT, include_str!("protobuf.js")),
    ("rpc.js", JAVASCRIPT, include_str!("rpc.js")),
    ("settings.js", JAVASCRIPT, include_str!("settings.js")),
    ("shell.js", JAVASCRIPT, include_str!("shell.js")),
    ("theme.js", JAVASCRIPT, include_str!("theme.js")),
    ("timeline.js", JAVASCRIPT, include_str!("timeline.js")),
];

/// Nothing from elsewhere, nothing inline, and in nobody's frame.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
         frame-ancestors 'none'; form-action 'self'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    // Kept, but asked for each time whether it is still what is served: an upgrade shows at once.
    (header::CACHE_CONTROL, "no-cache"),
];

pub(super) fn routes(webhook_port: u16) -> anyhow::Result<Router> {
    let page = include_str!("index.html").replace("{webhook_port}", &webhook_port.to_string());
    let router = Router::new()
        .route("/", file("text/html; charset=utf-8", page.into()))
        .route("/board/schema.js", file(JAVASCRIPT, schema::module()?.into()));
    let router = FILES.iter().fold(router, |router, &(name, content_type, text)| {
        router.route(&format!("/board/{name}"), file(content_type, Bytes::from_static(text.as_bytes())))
    });
    Ok(router.layer(map_response(async |mut response: Response| {
        for (name, value) in HEADERS {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    })))
}

fn file<S: Clone + Send + Sync + 'static>(content_type: &'static str, body: Bytes) -> axum::routing::MethodRouter<S> {
    let tag = format!("\"{:032x}\"", xxh3_128(&body));
    get(async move |request: Request| {
        let known = request.headers().get_all(header::IF_NONE_MATCH).iter().any(|tags| tags.to_str().is_ok_and(|tags| tags.contains(&tag)));
        let tag = [(header::ETAG, tag.clone())];
        if known {
            return (StatusCode::NOT_MODIFIED, tag).into_response();
        }
        (tag, [(header::CONTENT_TYPE, content_type)], body.clone()).into_response()
    })
}
