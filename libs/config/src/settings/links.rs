use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Pages of other tools that show more of a request; whoever asks ingest to explain one is led there.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Links {
    /// The URL of a page that shows a trace, with `{trace_id}` where its id goes. Default none.
    pub trace: Option<String>,
    /// The URL of a page that shows a request, with `{request_id}` where its id goes. Default none.
    pub request: Option<String>,
}

impl Links {
    /// What stands for the trace's id.
    pub(crate) const TRACE_ID: &str = "{trace_id}";
    /// What stands for the request's id.
    pub(crate) const REQUEST_ID: &str = "{request_id}";

    /// The page of a trace, if there are such pages.
    #[must_use]
    pub fn to_trace(&self, trace_id: &str) -> Option<String> {
        Some(self.trace.as_ref()?.replace(Self::TRACE_ID, trace_id))
    }

    /// The page of a request, if there are such pages.
    #[must_use]
    pub fn to_request(&self, request_id: &str) -> Option<String> {
        Some(self.request.as_ref()?.replace(Self::REQUEST_ID, request_id))
    }
}
