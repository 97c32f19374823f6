//! Which spans are exported.

use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{Sampler, SamplingResult, ShouldSample};

/// A part goes with its trace, and what only has links with any of them; the beginnings of traces
/// are a share of all.
#[derive(Debug, Clone)]
pub(super) struct Sample(Sampler);

impl Sample {
    /// Of the beginnings this share.
    pub(super) fn new(share: f64) -> Self {
        Self(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
    }
}

impl ShouldSample for Sample {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        fields: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let begins = parent.is_none_or(|parent| !parent.span().span_context().is_valid());
        let sampler = match links {
            [_, ..] if begins && links.iter().any(|link| link.span_context.is_sampled()) => {
                &Sampler::AlwaysOn
            }
            [_, ..] if begins => &Sampler::AlwaysOff,
            _ => &self.0,
        };
        sampler.should_sample(parent, trace_id, name, kind, fields, links)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceState};
    use opentelemetry_sdk::trace::SamplingDecision;

    use super::*;

    fn context(flags: TraceFlags) -> SpanContext {
        let (trace, span) = (TraceId::from(7), SpanId::from(7));
        SpanContext::new(trace, span, flags, true, TraceState::default())
    }

    fn is_sampled(share: f64, parent: Option<TraceFlags>, links: &[TraceFlags]) -> bool {
        let links: Vec<Link> =
            links.iter().map(|flags| Link::with_context(context(*flags))).collect();
        let parent = parent.map_or_else(Context::new, |flags| {
            Context::new().with_remote_span_context(context(flags))
        });
        // The lower half of an id decides: this one is in the middle.
        let trace = TraceId::from(1_u128 << 63);
        let result = Sample::new(share).should_sample(
            Some(&parent),
            trace,
            "name",
            &SpanKind::Internal,
            &[],
            &links,
        );
        result.decision == SamplingDecision::RecordAndSample
    }

    #[test]
    fn parents_decide_then_links_then_the_share() {
        let (yes, no) = (TraceFlags::SAMPLED, TraceFlags::NOT_SAMPLED);
        assert!(is_sampled(1.0, None, &[]) && !is_sampled(0.0, None, &[]));
        assert!(is_sampled(0.0, Some(yes), &[]) && !is_sampled(1.0, Some(no), &[]));
        assert!(is_sampled(0.0, None, &[no, yes]) && !is_sampled(1.0, None, &[no, no]));
        assert!(!is_sampled(1.0, Some(no), &[yes]));
    }
}
