//! gRPC on a port that does not speak it: its clients are told where to go in a way that they understand.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, header};

use super::status;

/// Whether a request speaks gRPC or gRPC-Web.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    content_type(headers).is_some_and(|essence| essence.starts_with("application/grpc"))
}

/// Whether a request speaks gRPC-Web.
pub fn is_grpc_web(headers: &HeaderMap) -> bool {
    content_type(headers).is_some_and(|essence| essence.starts_with("application/grpc-web"))
}

/// The content type in lower case, without its parameters.
fn content_type(headers: &HeaderMap) -> Option<String> {
    Some(headers.get(header::CONTENT_TYPE)?.to_str().ok()?.split(';').next()?.trim().to_ascii_lowercase())
}

/// The answer to a gRPC request on the `listener` (its flag), which is not `grpc_port`'s: `UNIMPLEMENTED`, in headers
/// alone, as gRPC has it.
pub fn unimplemented(headers: &HeaderMap, listener: &str, grpc_port: u16) -> Response {
    let what = if listener == "--http-addr" { "takes webhooks" } else { "serves its board and its health" };
    let message = format!("that is where leadfold {what} ({listener}); gRPC is served on port {grpc_port}, --grpc-addr");
    let web = content_type(headers).filter(|essence| essence.starts_with("application/grpc-web"));
    let content_type = web.and_then(|web| HeaderValue::from_str(&web).ok()).unwrap_or(HeaderValue::from_static("application/grpc"));
    let mut response: Response = status::wrong_port(message).into_http();
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// axum middleware, for a listener that serves no gRPC (its flag, and the port that does): answers gRPC by itself.
pub async fn answer_grpc(State((listener, grpc_port)): State<(&'static str, u16)>, request: Request, next: Next) -> Response {
    if is_grpc(request.headers()) && request.method() == Method::POST {
        unimplemented(request.headers(), listener, grpc_port)
    } else {
        next.run(request).await
    }
}
