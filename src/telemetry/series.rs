//! Every metric: what it is called, what it means, and which of its series there are from the start.
//!
//! Prometheus sees a counter rise only from a value that it has scraped before: of a series that appears with its first
//! event, `increase()` misses that event. So **whatever an alert or a panel asks for begins at zero**, and a new counter
//! gets a line here, with the values of its labels as far as they are known.

use metrics::{Key, Label, Level, Metadata, Recorder, SharedString};

/// Labels, and the values that each may have: there is a series for every combination.
type Labels = &'static [(&'static str, &'static [&'static str])];

/// Whether a metric counts, goes up and down, or measures times and sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric.
#[derive(Debug)]
struct Metric {
    kind: Kind,
    name: &'static str,
    help: &'static str,
    /// The series that begin at zero. None: the metric appears once it is set, which has to be before the first scrape.
    begins: &'static [Labels],
}

/// One series, without labels.
const ALONE: &[Labels] = &[&[]];

const LISTENERS: &[Labels] = &[&[("listener", &["http", "grpc", "admin"])]];

const EVENTS: &[&str] = &crate::event::KNOWN_EVENTS;

const UNARY_CALLS: &[&str] = &[
    "leadfold.v1.LeadService/GetLead",
    "leadfold.v1.LeadService/BatchGetLeads",
    "leadfold.v1.LeadService/ListLeads",
    "leadfold.v1.LeadService/ListActivities",
    "leadfold.v1.LeadService/ListDocuments",
    "leadfold.v1.LeadService/DeleteLead",
    "leadfold.v1.DeadLetterService/ListDeadLetters",
    "leadfold.v1.DeadLetterService/RetryDeadLetters",
    "leadfold.v1.DeadLetterService/DropDeadLetters",
];

const WATCHES: &[&str] = &["leadfold.v1.LeadService/WatchLead", "leadfold.v1.LeadService/WatchLeads"];

const REDIS_CALLS: &[&str] = &["apply", "read", "activities", "list", "delete", "version", "probe", "probe_reads"];

/// Those that Redis gives while it is in some trouble, and two of ours.
const REDIS_CODES: &[&str] = &[
    "timeout",
    "connection",
    "OOM",
    "MISCONF",
    "READONLY",
    "NOREPLICAS",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "WRONGTYPE",
    "ERR",
];

const fn counter(name: &'static str, help: &'static str, begins: &'static [Labels]) -> Metric {
    Metric { kind: Kind::Counter, name, help, begins }
}

const fn gauge(name: &'static str, help: &'static str, begins: &'static [Labels]) -> Metric {
    Metric { kind: Kind::Gauge, name, help, begins }
}

const fn histogram(name: &'static str, help: &'static str, begins: &'static [Labels]) -> Metric {
    Metric { kind: Kind::Histogram, name, help, begins }
}

const METRICS: &[Metric] = &[
    gauge("leadfold_build_info", "1, with the version as a label.", &[]),
    gauge("leadfold_part_up", "1 while a part works: the store, whether it takes writes, the feed, the server.", &[]),
    gauge("leadfold_part_degraded", "1 while a part works, but not all of it: some server of several is away.", &[]),
    gauge("leadfold_ready", "1 while this instance is ready for webhooks, or for reads and watches.", &[]),
    // Webhooks and calls.
    counter(
        "leadfold_webhooks_total",
        "Webhooks answered, by event and by what became of them.",
        &[
            &[("event", EVENTS), ("result", &["applied", "duplicate", "ignored", "queued", "refused"])],
            &[("event", &["invalid", "none"]), ("result", &["refused"])],
            &[("event", &["unknown"]), ("result", &["ignored"])],
        ],
    ),
    histogram(
        "http_server_request_duration_seconds",
        "From the headers of a webhook to its answer.",
        &[&[
            ("http_request_method", &["POST"]),
            ("http_route", &["/webhooks/omniai", "/webhooks/omniai/{workspace_id}"]),
            ("http_response_status_code", &["200", "400", "503"]),
        ]],
    ),
    histogram(
        "rpc_server_call_duration_seconds",
        "From the request of a unary call to its answer.",
        &[&[("rpc_method", UNARY_CALLS), ("rpc_response_status_code", &["OK", "INTERNAL", "UNAVAILABLE"])]],
    ),
    counter(
        "leadfold_unread_fields_total",
        "Events of which an optional field could not be read, and so counts as absent, by field.",
        &[&[("field", crate::fold::FIELDS)]],
    ),
    counter("leadfold_unauthenticated_total", "Requests that were not let in.", LISTENERS),
    counter(
        "leadfold_reloads_total",
        "Files of secrets that changed and were read again.",
        &[&[("what", &["tokens", "webhook secrets", "TLS certificates"]), ("result", &["ok", "failed"])]],
    ),
    counter(
        "leadfold_webhooks_shed_total",
        "Webhooks turned away since too much was under way, or came from one sender.",
        &[&[("limit", &["server", "sender", "unconfirmed", "unauthenticated"])]],
    ),
    counter(
        "leadfold_proxy_headers_refused_total",
        "Connections not served since their PROXY protocol header is missing, wrong or not expected.",
        &[&[
            ("listener", &["http", "grpc", "admin"]),
            ("reason", &["untrusted", "not_expected", "missing", "malformed", "too_long", "late"]),
        ]],
    ),
    counter("leadfold_calls_shed_total", "Calls turned away since too many were under way.", ALONE),
    counter("leadfold_answers_unread_total", "Answers dropped since their clients read nothing of them for some time.", ALONE),
    // Watches.
    gauge("leadfold_watch_streams", "Watch streams that are open.", ALONE),
    histogram(
        "leadfold_watch_setup_duration_seconds",
        "From the request of a stream to its beginning or its refusal.",
        &[&[("rpc_method", WATCHES), ("rpc_response_status_code", &["OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE"])]],
    ),
    histogram(
        "leadfold_watch_duration_seconds",
        "How long watch streams were open, by the status that they ended with.",
        &[&[("rpc_method", WATCHES), ("rpc_response_status_code", &["OK", "CANCELLED", "UNAVAILABLE"])]],
    ),
    counter("leadfold_watch_messages_total", "Messages delivered on watch streams, heartbeats included.", ALONE),
    counter("leadfold_watch_conflations_total", "Changes that a stream of many leads told together with a later one.", ALONE),
    gauge("leadfold_watched_leads", "Leads that are kept in memory because they are watched.", ALONE),
    // What was acknowledged in the last seconds, kept to be applied again.
    gauge("leadfold_replay_buffer_bytes", "Memory of changes that are applied again if Redis loses them.", ALONE),
    counter(
        "leadfold_replayed_changes_total",
        "Changes that were applied again after a Redis was replaced or restarted, by whether they had been lost.",
        &[&[("lost", &["yes", "no"])]],
    ),
    gauge("leadfold_feed_lag_seconds", "How long ago the change feed last proved to have told everything.", ALONE),
    counter("leadfold_feed_gaps_total", "Times that the feed may have missed changes, and watched leads were read again.", ALONE),
    counter("leadfold_feed_reconnects_total", "Times that the feed lost its connection.", ALONE),
    // Redis.
    histogram("leadfold_redis_call_duration_seconds", "Calls of Redis, by what was called.", &[&[("call", REDIS_CALLS)]]),
    counter(
        "leadfold_redis_errors_total",
        "Calls of Redis that failed, by Redis' error code.",
        &[&[("call", REDIS_CALLS), ("code", REDIS_CODES)]],
    ),
    histogram("leadfold_redis_batch_changes", "Changes that went to Redis in one call.", ALONE),
    // The spool and dead letters.
    gauge("leadfold_spool_events", "Events that wait in the spool to be applied.", ALONE),
    gauge("leadfold_spool_bytes", "Bytes of the spool on disk.", ALONE),
    gauge("leadfold_spool_max_bytes", "Bytes that the spool may take: --spool-max-bytes.", ALONE),
    gauge("leadfold_spool_oldest_age_seconds", "How long ago the oldest event that waits in the spool was received.", ALONE),
    counter("leadfold_spool_applied_total", "Events of the spool that were applied.", ALONE),
    counter("leadfold_spool_damaged_total", "Records of the spool that could not be read.", ALONE),
    gauge("leadfold_store_breaker_open", "1 while the store fails and events go to the spool without asking it.", ALONE),
    gauge("leadfold_dead_letters", "Dead letters that are kept.", ALONE),
    counter(
        "leadfold_dead_letters_total",
        "Events that became dead letters, by reason.",
        &[&[("reason", &["refused", "other_workspace", "store_corrupt", "unreadable"])]],
    ),
    counter("leadfold_dead_letters_evicted_total", "Dead letters that gave way to newer ones.", ALONE),
    counter(
        "leadfold_alarms_total",
        "Failures that somebody has to look at, by cause; the log says what.",
        &[&[("cause", &crate::alarm::CAUSES)]],
    ),
    // Connections.
    gauge("leadfold_connections", "Connections that are open, by listener.", LISTENERS),
    counter("leadfold_accept_errors_total", "Connections that could not be accepted, for want of file descriptors, say.", LISTENERS),
    counter("leadfold_tls_handshake_failures_total", "Connections that did not come to speak TLS.", LISTENERS),
    counter("leadfold_connections_refused_total", "Connections beyond --max-connections.", LISTENERS),
    // This process about itself.
    counter("leadfold_log_lines_dropped_total", "Log lines that were lost: nobody read them in time, or they could not be written.", ALONE),
    counter("leadfold_spans_total", "Spans that were handed to the OTLP collector, or were lost.", &[&[("result", &["exported", "lost"])]]),
];

/// Says what each metric means, and lets its series begin.
pub(super) fn begin() {
    metrics::with_recorder(|recorder| METRICS.iter().for_each(|metric| metric.begin(recorder)));
}

impl Metric {
    fn begin(&self, recorder: &dyn Recorder) {
        const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
        let (name, help) = (self.name, SharedString::const_str(self.help));
        match self.kind {
            Kind::Counter => recorder.describe_counter(name.into(), None, help),
            Kind::Gauge => recorder.describe_gauge(name.into(), None, help),
            Kind::Histogram => recorder.describe_histogram(name.into(), None, help),
        }
        for labels in self.begins.iter().flat_map(|labels| combinations(labels)) {
            let key = Key::from_parts(name, labels);
            match self.kind {
                // Counts from before are kept.
                Kind::Counter => recorder.register_counter(&key, &METADATA).absolute(0),
                Kind::Gauge => recorder.register_gauge(&key, &METADATA).set(0.0),
                Kind::Histogram => drop(recorder.register_histogram(&key, &METADATA)),
            }
        }
    }
}

/// Every choice of one value for each label.
fn combinations(labels: Labels) -> Vec<Vec<Label>> {
    labels.iter().fold(vec![Vec::new()], |chosen, (name, values)| {
        let with = |value: &'static str| {
            chosen.iter().map(move |labels: &Vec<Label>| labels.iter().cloned().chain([Label::from_static_parts(name, value)]).collect())
        };
        values.iter().flat_map(|value| with(value)).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_combined_each_with_each() {
        let told = |labels| {
            let text = |label: &Label| format!("{}={}", label.key(), label.value());
            let mut told: Vec<_> =
                combinations(labels).iter().map(|labels| labels.iter().map(text).collect::<Vec<_>>().join(" ")).collect();
            told.sort();
            told
        };
        assert_eq!(told(&[]), [""]);
        assert_eq!(told(&[("a", &["1", "2"]), ("b", &["3", "4"])]), ["a=1 b=3", "a=1 b=4", "a=2 b=3", "a=2 b=4"]);
    }

    #[test]
    fn each_metric_is_there_once() {
        let mut names: Vec<_> = METRICS.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
