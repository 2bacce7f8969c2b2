//! When a call that failed is worth repeating: the rule of every client, as README.md ("Clients") states it.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The domain of the `ErrorInfo` that every error of a leadfold server carries.
const SERVER_DOMAIN: &str = "leadfold";
/// The first and the longest wait before a call is repeated.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Whether the server itself has said something that repeating the call cannot change.
///
/// The code alone does not tell: clients translate the HTTP status of a proxy's own page (401, 403, 404) into the same codes, and
/// some proxies answer with a gRPC status of their own. Such an answer says how the proxy is at the moment, not what the server
/// thinks of the call.
pub(super) fn is_final(status: &Status) -> bool {
    let cannot_change = matches!(
        status.code(),
        Code::InvalidArgument | Code::NotFound | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented
    );
    cannot_change && is_of_the_server(status)
}

/// Whether these are the server's own words, and not those of a proxy or of the library here.
pub(super) fn is_of_the_server(status: &Status) -> bool {
    status.get_details_error_info().is_some_and(|info| info.domain == SERVER_DOMAIN)
}

/// Waits that grow from failure to failure and differ between clients.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) const fn new() -> Self {
        Self(BACKOFF.0)
    }

    /// Something succeeded.
    pub(super) const fn reset(&mut self) {
        self.0 = BACKOFF.0;
    }

    /// How long to wait before the next attempt: at least as long as the server asked for, within reason.
    pub(super) fn next(&mut self, status: &Status) -> Duration {
        let asked = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
        let wait = self.0.mul_f64(rand::random_range(0.5..1.0)).max(asked.min(BACKOFF.1));
        self.0 = (self.0 * 2).min(BACKOFF.1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn only_the_servers_own_word_ends_a_client() {
        for number in 1..=16 {
            let code = Code::from_i32(number);
            let said_by = |domain: &str| {
                let details = ErrorDetails::with_error_info("REASON", domain, HashMap::<String, String>::new());
                is_final(&Status::with_error_details(code, "words", details))
            };
            assert_eq!(said_by("leadfold"), [3, 5, 7, 12, 16].contains(&number), "{code:?} of the server");
            assert!(!said_by("proxy.example") && !is_final(&Status::new(code, "words")), "{code:?} of a proxy");
        }
    }
}
