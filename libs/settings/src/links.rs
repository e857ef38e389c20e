use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// URLs of pages in other tools that show more about a request; explanations of a request link to them.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Links {
    /// URL of the page that shows a trace, with `{trace_id}` in place of its id. Default none.
    pub trace: Option<String>,
    /// URL of the page that shows a request, with `{request_id}` in place of its id. Default none.
    pub request: Option<String>,
}

impl Links {
    /// The placeholder for the trace's id.
    pub(crate) const TRACE_ID: &str = "{trace_id}";
    /// The placeholder for the request's id.
    pub(crate) const REQUEST_ID: &str = "{request_id}";

    /// Returns the URL of a trace's page, if configured.
    #[must_use]
    pub fn to_trace(&self, trace_id: &str) -> Option<String> {
        Some(self.trace.as_ref()?.replace(Self::TRACE_ID, trace_id))
    }

    /// Returns the URL of a request's page, if configured.
    #[must_use]
    pub fn to_request(&self, request_id: &str) -> Option<String> {
        Some(self.request.as_ref()?.replace(Self::REQUEST_ID, request_id))
    }
}
