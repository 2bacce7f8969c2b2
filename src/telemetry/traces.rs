//! Traces over OTLP, off unless a collector is named.
//!
//! One span for each webhook and each call; of a stream its set-up. Spans go to the collector in batches, from a
//! thread of their own and through a bounded queue: a collector that is slow or dead costs spans, and nothing else.

use std::future::Future;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanKind, Status, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData};
use tracing::Instrument as _;

use crate::config::OtlpConfig;

/// How long the collector may take for one batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long what waits may take at the end of the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Spans that wait for the collector; what comes on top is lost.
const QUEUE: usize = 8192;
/// How often spans are handed over.
const INTERVAL: Duration = Duration::from_secs(1);

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// The way to the collector.
#[derive(Debug)]
pub struct Exporter {
    provider: SdkTracerProvider,
}

impl Exporter {
    /// Begins to trace. The collector need not be there. Needs a tokio runtime.
    ///
    /// # Errors
    /// Its address cannot be used.
    pub fn start(config: &OtlpConfig) -> anyhow::Result<Self> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(&config.endpoint).with_timeout(EXPORT_TIMEOUT);
        let exporter = Counted { inner: exporter.build().context("--otlp-endpoint cannot be used")?, failing: AtomicBool::new(false) };
        let batches = BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_scheduled_delay(INTERVAL).build();
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        // Names and further attributes come from OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, where they are set.
        let mut resource = Resource::builder().with_attribute(version);
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("leadfold");
        }
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio))))
            .with_resource(resource.build())
            .build();
        let _ = TRACER.set(provider.tracer("leadfold"));
        Ok(Self { provider })
    }

    /// Hands over what waits, for two seconds at most.
    pub(super) fn end(self) {
        let (done, ended) = std::sync::mpsc::channel();
        // On a thread of its own: the limit that the SDK keeps leaves out an export that hangs.
        std::thread::spawn(move || done.send(self.provider.shutdown_with_timeout(FLUSH_TIMEOUT).is_ok()));
        if ended.recv_timeout(FLUSH_TIMEOUT) != Ok(true) {
            tracing::warn!("the last spans did not reach the OTLP collector in time");
        }
    }
}

/// Counts what reaches the collector, and says when it stops and begins to.
#[derive(Debug)]
struct Counted<E> {
    inner: E,
    failing: AtomicBool,
}

impl<E: opentelemetry_sdk::trace::SpanExporter> opentelemetry_sdk::trace::SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.inner.export(batch).await;
        let label = if result.is_ok() { "exported" } else { "lost" };
        metrics::counter!("leadfold_spans_total", "result" => label).increment(spans);
        match (&result, self.failing.swap(result.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!(%error, "the OTLP collector takes no spans: they are lost until it does"),
            (Ok(()), true) => tracing::info!("the OTLP collector takes spans again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// A request's span. It ends when it is dropped, at the latest.
#[derive(Debug)]
pub struct RequestSpan {
    span: opentelemetry_sdk::trace::Span,
    lines: tracing::Span,
}

impl RequestSpan {
    /// Begins the span of a request whose headers may name the trace that it belongs to (W3C Trace Context). `None`
    /// while nobody wants traces, and when this one is not sampled.
    pub fn begin(headers: &HeaderMap, name: impl FnOnce() -> String, attributes: impl FnOnce() -> Vec<KeyValue>) -> Option<Self> {
        let tracer = TRACER.get()?;
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        let span = tracer.span_builder(name()).with_kind(SpanKind::Server).with_attributes(attributes());
        let span = span.start_with_context(tracer, &parent);
        if !span.is_recording() {
            return None;
        }
        let lines = tracing::info_span!("request", trace_id = %span.span_context().trace_id());
        Some(Self { span, lines })
    }

    /// Does the request's work; what is logged meanwhile names the trace.
    pub async fn cover<F: Future>(&self, work: F) -> F::Output {
        work.instrument(self.lines.clone()).await
    }

    /// Ends it with what became of the request.
    pub fn end(mut self, attribute: &'static str, value: impl Into<Value>, is_error: bool) {
        self.span.set_attribute(KeyValue::new(attribute, value));
        if is_error {
            self.span.set_status(Status::error(""));
        }
        self.span.end();
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
