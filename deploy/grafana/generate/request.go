package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/table"
)

// request shows one request: its traces, attempts and log lines.
func request() *dashboard.DashboardBuilder {
	id := dashboard.NewTextBoxVariableBuilder("request").
		Label("Request id").
		Description("The 20 digits of request_id in the response to the client.").
		DefaultValue(dashboard.StringOrMap{String: cog.ToPtr("")})
	return newDashboard("request", "Throughline: One request",
		"The history of one request, by its id. The time range must include its attempts.").
		Time("now-24h", "now").
		WithVariable(source("loki")).
		WithVariable(source("tempo")).
		WithVariable(id).
		WithPanel(rows(facts{
			title: "Traces", unit: "none", empty: "none: the id is wrong, the time range is too short, or no trace was kept", width: whole, height: high,
			description: "The first attempt is part of the trace that the client started. A much later attempt has its own trace, which links to that trace.",
		}, "tempo", merged, []name{
			{of: "traceID", shown: "Trace"},
			{of: "startTime", shown: "Start"},
			{of: "traceService", shown: "Service"},
			{of: "traceName", shown: "Name"},
			{of: "traceDuration", shown: "Duration", properties: []dashboard.DynamicConfigValue{in("ms")}},
		}, traces(`{ span.throughline.request.id = "$request" }`))).
		WithPanel(attempts()).
		WithPanel(lines(facts{
			title: "Log", unit: "none", empty: "none: the id is wrong, or the time range is too short", width: whole, height: tall,
			description: "The log lines of all services that contain the request id.",
		}, logLines(requestLines)))
}

func attempts() *table.PanelBuilder {
	return rows(facts{
		title: "Attempts", unit: "none", empty: "none yet, or the time range is too short", width: whole, height: high,
		description: "The outcome of each attempt, from the logs of dispatch. Deferrals are logged at debug level only; GET /v1/requests/{id} returns the complete history.",
	}, "loki", spread, []name{
		{of: "Time", shown: "Time"},
		{of: "destination", shown: "Destination"},
		{of: "attempt", shown: "Attempt"},
		{of: "outcome", shown: "Outcome"},
		{of: "status", shown: "Status"},
		{of: "duration_ms", shown: "Duration", properties: []dashboard.DynamicConfigValue{in("ms")}},
		{of: "reason", shown: "Reason"},
		{of: "error_class", shown: "Error class"},
		{of: "error", shown: "Error"},
		{of: "due_at", shown: "Next attempt due"},
		{of: "trace_id", shown: "Trace"},
	}, logLines(requestLines+" | outcome!=``"))
}

const requestLines = "{service_namespace=\"throughline\", deployment_environment_name=~\"$environment\"} | request_id=`$request`"
