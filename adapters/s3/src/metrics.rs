//! Counters of the S3 door.

use std::sync::Arc;

use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    operation: &'static str,
    class: Class,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Class {
    #[expect(non_camel_case_types, reason = "label values")]
    success,
    #[expect(non_camel_case_types, reason = "label values")]
    client_error,
    #[expect(non_camel_case_types, reason = "label values")]
    slow_down,
    #[expect(non_camel_case_types, reason = "label values")]
    server_error,
}

/// What the door counts.
#[derive(Clone, Debug)]
pub(crate) struct S3Metrics {
    /// Requests answered, by operation and how they ended.
    requests: Family<Answered, Counter>,
    /// Seconds from a request's head to its answer's head, by operation.
    duration: Family<Operation, Histogram>,
    /// Clients that left before their answer.
    pub(crate) client_gone: Counter,
    /// Bytes of bodies, received and sent.
    pub(crate) received: Counter,
    pub(crate) sent: Counter,
    /// Bodies refused because the memory for them was spent.
    pub(crate) refused_bodies: Counter,
    /// Requests running.
    pub(crate) running: Gauge,
}

impl S3Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            duration: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.0005, 2.0, 16))
            }),
            client_gone: Counter::default(),
            received: Counter::default(),
            sent: Counter::default(),
            refused_bodies: Counter::default(),
            running: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("s3");
        registry.register(
            "requests",
            "S3 requests answered, by operation and class of the answer",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Time from a request's head to its answer's head",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register(
            "client_gone",
            "S3 clients that left before their answer",
            metrics.client_gone.clone(),
        );
        registry.register_with_unit(
            "received",
            "Bytes of object bodies received",
            Unit::Bytes,
            metrics.received.clone(),
        );
        registry.register_with_unit(
            "sent",
            "Bytes of object bodies sent",
            Unit::Bytes,
            metrics.sent.clone(),
        );
        registry.register(
            "refused_bodies",
            "Object bodies refused because the memory for them was spent",
            metrics.refused_bodies.clone(),
        );
        registry.register(
            "requests_running",
            "S3 requests that have no answer yet",
            metrics.running.clone(),
        );
        metrics
    }

    pub(crate) fn answered(&self, operation: &'static str, status: u16, took: Duration) {
        let class = match status {
            503 => Class::slow_down,
            500.. => Class::server_error,
            400.. => Class::client_error,
            _ => Class::success,
        };
        self.requests
            .get_or_create(&Answered { operation, class })
            .inc();
        self.duration
            .get_or_create(&Operation { operation })
            .observe(took.as_secs_f64());
    }
}

/// Learns the name of a request's operation, once it is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    operation: Arc<Mutex<Option<&'static str>>>,
}

impl Seen {
    pub(crate) fn operation(&self, name: &str) {
        *self.operation.lock() = Some(known(name));
    }

    pub(crate) fn name(&self) -> &'static str {
        self.operation.lock().unwrap_or("None")
    }
}

/// The names that `s3s` gives are static, but not to the compiler.
fn known(name: &str) -> &'static str {
    const NAMES: [&str; 24] = [
        "GetObject",
        "PutObject",
        "HeadObject",
        "DeleteObject",
        "DeleteObjects",
        "CopyObject",
        "ListObjects",
        "ListObjectsV2",
        "ListObjectVersions",
        "ListBuckets",
        "CreateBucket",
        "HeadBucket",
        "DeleteBucket",
        "CreateMultipartUpload",
        "UploadPart",
        "UploadPartCopy",
        "CompleteMultipartUpload",
        "AbortMultipartUpload",
        "ListParts",
        "ListMultipartUploads",
        "PostObject",
        "GetObjectAttributes",
        "GetObjectTagging",
        "PutObjectTagging",
    ];
    NAMES
        .into_iter()
        .find(|known| *known == name)
        .unwrap_or("Other")
}
