package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/table"
)

// request is what is known of one request: its traces, its attempts, its log lines.
func request() *dashboard.DashboardBuilder {
	id := dashboard.NewTextBoxVariableBuilder("request").
		Label("Request id").
		Description("The 20 digits that the client was answered.").
		DefaultValue(dashboard.StringOrMap{String: cog.ToPtr("")})
	return newDashboard("request", "Throughline: One request",
		"What became of one request, by its id. Mind the time range: it has to include the attempts.").
		Time("now-24h", "now").
		WithVariable(source("loki")).
		WithVariable(source("tempo")).
		WithVariable(id).
		WithPanel(rows(facts{
			title: "Traces", unit: "none", empty: "no trace: the id is wrong, the time range too short, or none was kept", width: whole, height: high,
			description: "The first attempt is part of the trace that the client began; one that comes much later has a trace of its own, linked to it.",
		}, "tempo", merged, []name{
			{of: "traceID", shown: "Trace"},
			{of: "startTime", shown: "Began"},
			{of: "traceService", shown: "Service"},
			{of: "traceName", shown: "Name"},
			{of: "traceDuration", shown: "Duration", properties: []dashboard.DynamicConfigValue{in("ms")}},
		}, traces(`{ span.throughline.request.id = "$request" }`))).
		WithPanel(attempts()).
		WithPanel(lines(facts{
			title: "Log", unit: "none", empty: "no line: the id is wrong, or the time range too short", width: whole, height: tall,
			description: "All lines that name the request, of all services.",
		}, logLines(requestLines)))
}

func attempts() *table.PanelBuilder {
	return rows(facts{
		title: "Attempts", unit: "none", empty: "none yet, or the time range is too short", width: whole, height: high,
		description: "How each attempt ended, from dispatch's log. Deferred ones are logged at debug level only; GET /v1/requests/{id} has the whole story.",
	}, "loki", spread, []name{
		{of: "Time", shown: "When"},
		{of: "destination", shown: "Destination"},
		{of: "attempt", shown: "Attempt"},
		{of: "outcome", shown: "Outcome"},
		{of: "status", shown: "Status"},
		{of: "duration_ms", shown: "Took", properties: []dashboard.DynamicConfigValue{in("ms")}},
		{of: "reason", shown: "Reason"},
		{of: "error_class", shown: "Class"},
		{of: "error", shown: "Error"},
		{of: "due_at", shown: "Next not before"},
		{of: "trace_id", shown: "Trace"},
	}, logLines(requestLines+" | outcome!=``"))
}

const requestLines = "{service_namespace=\"throughline\", deployment_environment_name=~\"$environment\"} | request_id=`$request`"
