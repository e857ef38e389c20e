package main

import "github.com/grafana/grafana-foundation-sdk/go/dashboard"

// deadLetters is about deliveries that ended without success: how many wait, what for, and which they are.
func deadLetters() *dashboard.DashboardBuilder {
	return newDashboard("dead-letters", "Throughline: Dead letters",
		"Deliveries that ended without success: why, and which they are. `throughline dead-letters` replays them.").
		WithVariable(source("loki")).
		WithVariable(destinationsOf()).
		WithPanel(number(facts{
			title: "Wait to be dealt with", unit: "short", empty: "none", width: 6, height: low,
			description: "Dead letters that are neither replayed nor purged.",
		}, limits(good, 1., bad), over("sum(max by (deployment_environment_name, throughline_destination) (throughline_dead_letters_waiting{@environment, @destination}))", "waiting"))).
		WithPanel(number(facts{
			title: "New in 15 minutes", unit: "short", empty: "none", width: 6, height: low,
			description: "Deliveries that ended dead in the last 15 minutes.",
		}, limits(good, 1., bad, 100., worst), over("sum(throughline:dead_letters:increase15m{@environment, @destination})", "new"))).
		WithPanel(number(facts{
			title: "Of all that ended", unit: "percentunit", empty: "nothing ended", width: 6, height: low,
			description: "The part of the deliveries that ended in the last 15 minutes and ended dead. From 10 % on, and ten deliveries, somebody is woken.",
		}, limits(good, 0.01, bad, 0.1, worst), over(`sum(throughline:deliveries_ended:increase15m{throughline_outcome="dead", @environment, @destination})
/ sum(throughline:deliveries_ended:increase15m{throughline_outcome=~"dead|delivered", @environment, @destination})`, "dead"))).
		WithPanel(number(facts{
			title: "Cancelled in 15 minutes", unit: "short", empty: "none", width: 6, height: low,
			description: "Deliveries that somebody called off. They are no dead letters.",
		}, limits(unknown), over(`sum(throughline:deliveries_ended:increase15m{throughline_outcome="cancelled", @environment, @destination})`, "cancelled"))).
		WithPanel(stacked(facts{
			title: "New by reason", unit: "short", empty: "none", width: third, height: high,
			description: "In the 15 minutes before. What each reason means, and what to do, is in docs/operations.md.",
		}, over("sum by (throughline_reason) (throughline:dead_letters:increase15m{@environment, @destination})", "{{throughline_reason}}"))).
		WithPanel(stacked(facts{
			title: "New by destination and class", unit: "short", empty: "none", width: third, height: high,
			description: "In the 15 minutes before, by the class of the last error. What could not be routed has no destination.",
		}, over("sum by (throughline_destination, error_type) (throughline:dead_letters:increase15m{@environment, @destination})", "{{throughline_destination}} {{error_type}}"))).
		WithPanel(stacked(facts{
			title: "Waiting by destination", unit: "short", empty: "none", width: third, height: high,
			description: "It goes down when they are replayed or purged.",
		}, over("max by (throughline_destination) (throughline_dead_letters_waiting{@environment, @destination})", "{{throughline_destination}}"))).
		WithPanel(rows(facts{
			title: "What died", unit: "short", empty: "none in this time", width: whole, height: high,
			description: "Of the time that is shown, counted in dispatch's log.",
		}, "loki", merged, []name{
			{of: "destination", shown: "Destination"},
			{of: "reason", shown: "Reason"},
			{of: "error_class", shown: "Class of the last error"},
			{of: "status", shown: "Last status"},
			{of: "Value #A", shown: "Deliveries"},
		}, logLines("sum by (destination, reason, error_class, status) (count_over_time("+diedLines+" [$__auto]))").QueryType("instant"))).
		WithPanel(lines(facts{
			title: "Which they are", unit: "none", empty: "none in this time", width: whole, height: tall,
			description: "The line of each attempt that ended a delivery dead. Its details have the request's id, for the dashboard of one request, and lead to the trace.",
		}, logLines(diedLines)))
}

const diedLines = "{service_namespace=\"throughline\", deployment_environment_name=~\"$environment\"} | outcome=`dead` | destination=~\"$destination\""
