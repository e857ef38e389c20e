use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, ShouldSample};

/// The configured sampler. If it follows the parent, a span without a parent but with links follows the linked spans.
///
/// So a late attempt is recorded if its request is, and a commit if one of its requests is.
#[derive(Debug, Clone)]
pub(crate) struct Following(pub(crate) Sampler);

impl ShouldSample for Following {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let is_root = parent.is_none_or(|parent| !parent.span().span_context().is_valid());
        if !is_root || links.is_empty() || !matches!(self.0, Sampler::ParentBased(_)) {
            return self.0.should_sample(parent, trace_id, name, kind, attributes, links);
        }
        let is_recorded = links.iter().any(|link| link.span_context.is_sampled());
        let decision = if is_recorded { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop };
        SamplingResult { decision, attributes: Vec::new(), trace_state: TraceState::NONE }
    }
}
