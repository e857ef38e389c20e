package main

import "github.com/grafana/grafana-foundation-sdk/go/dashboard"

// deadLetters shows deliveries that ended without success: their number, their reasons and a list.
func deadLetters() *dashboard.DashboardBuilder {
	return newDashboard("dead-letters", "Throughline: Dead letters",
		"Deliveries that ended without success: their reasons and a list. `throughline dead-letters` replays them.").
		WithVariable(source("loki")).
		WithVariable(destinationsOf()).
		WithPanel(number(facts{
			title: "Open dead letters", unit: "short", empty: "none", width: 6, height: low,
			description: "Dead letters that are not replayed or purged yet.",
		}, limits(good, 1., bad), over("sum(max by (deployment_environment_name, throughline_destination) (throughline_dead_letters_waiting{@environment, @destination}))", "open"))).
		WithPanel(number(facts{
			title: "New in 15 minutes", unit: "short", empty: "none", width: 6, height: low,
			description: "Deliveries that ended dead in the last 15 minutes.",
		}, limits(good, 1., bad, 100., worst), over("sum(throughline:dead_letters:increase15m{@environment, @destination})", "new"))).
		WithPanel(number(facts{
			title: "Share of ended deliveries", unit: "percentunit", empty: "nothing ended", width: 6, height: low,
			description: "Share of dead letters among the deliveries that ended in the last 15 minutes. More than 10 %, and at least ten, page the on-call engineer.",
		}, limits(good, 0.01, bad, 0.1, worst), over(`sum(throughline:deliveries_ended:increase15m{throughline_outcome="dead", @environment, @destination})
/ sum(throughline:deliveries_ended:increase15m{throughline_outcome=~"dead|delivered", @environment, @destination})`, "dead"))).
		WithPanel(number(facts{
			title: "Cancelled in 15 minutes", unit: "short", empty: "none", width: 6, height: low,
			description: "Deliveries that were cancelled. They are not dead letters.",
		}, limits(unknown), over(`sum(throughline:deliveries_ended:increase15m{throughline_outcome="cancelled", @environment, @destination})`, "cancelled"))).
		WithPanel(stacked(facts{
			title: "New by reason", unit: "short", empty: "none", width: third, height: high,
			description: "Dead letters in the preceding 15 minutes. docs/operations.md explains each reason and the action to take.",
		}, over("sum by (throughline_reason) (throughline:dead_letters:increase15m{@environment, @destination})", "{{throughline_reason}}"))).
		WithPanel(stacked(facts{
			title: "New by destination and error class", unit: "short", empty: "none", width: third, height: high,
			description: "Dead letters in the preceding 15 minutes, by the class of the last error. Unroutable requests have no destination.",
		}, over("sum by (throughline_destination, error_type) (throughline:dead_letters:increase15m{@environment, @destination})", "{{throughline_destination}} {{error_type}}"))).
		WithPanel(stacked(facts{
			title: "Open by destination", unit: "short", empty: "none", width: third, height: high,
			description: "Dead letters that are not replayed or purged yet.",
		}, over("max by (throughline_destination) (throughline_dead_letters_waiting{@environment, @destination})", "{{throughline_destination}}"))).
		WithPanel(rows(facts{
			title: "Dead letters by cause", unit: "short", empty: "none in this time range", width: whole, height: high,
			description: "Dead letters in the selected time range, counted in the logs of dispatch.",
		}, "loki", merged, []name{
			{of: "destination", shown: "Destination"},
			{of: "reason", shown: "Reason"},
			{of: "error_class", shown: "Last error class"},
			{of: "status", shown: "Last status"},
			{of: "Value #A", shown: "Deliveries"},
		}, logLines("sum by (destination, reason, error_class, status) (count_over_time("+diedLines+" [$__auto]))").QueryType("instant"))).
		WithPanel(lines(facts{
			title: "Dead letters in the log", unit: "none", empty: "none in this time range", width: whole, height: tall,
			description: "The log line of each attempt after which a delivery ended dead. Its details contain the request id, for the dashboard One request, and a link to the trace.",
		}, logLines(diedLines)))
}

const diedLines = "{service_namespace=\"throughline\", deployment_environment_name=~\"$environment\"} | outcome=`dead` | destination=~\"$destination\""
