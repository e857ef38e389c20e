package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/table"
)

// pipeline is what to look at first: do requests flow, is anything stuck, and where.
func pipeline() *dashboard.DashboardBuilder {
	board := newDashboard("pipeline", "Throughline: Pipeline",
		"From the client's POST to the third party's answer: do requests flow, is anything stuck, and who is to blame.").
		WithVariable(routes()).
		WithVariable(destinationsOf())
	atAGlance(board)
	board.WithRow(row("Flow"))
	flow(board)
	board.WithRow(row("Backlog: what waits, and for how long"))
	backlog(board)
	board.WithRow(row("What goes wrong"))
	trouble(board)
	return board
}

// atAGlance is the first row: numbers that are green when all is well, then who is to blame when they are not.
func atAGlance(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(number(facts{
			title: "Accepted", unit: "reqps", empty: "no ingest", width: 4, height: low,
			description: "Requests that were answered 201, a second: they are committed.",
		}, limits(unknown), over("sum(rate(throughline_requests_accepted_total{@environment, @route}[$__rate_interval]))", "accepted"))).
		WithPanel(number(facts{
			title: "Delivered", unit: "reqps", empty: "nothing yet", width: 4, height: low,
			description: "Deliveries that ended with the third party's success, a second.",
		}, limits(unknown), over(`sum(rate(throughline_deliveries_total{throughline_outcome="delivered", @environment, @destination}[$__rate_interval]))`, "delivered"))).
		WithPanel(number(facts{
			title: "Late, last hour", unit: "percentunit", empty: "no deliveries", width: 4, height: low,
			description: "The part of the last hour's deliveries that took longer than 60 s or still wait; of the worst destination. " +
				"The objective allows 1 %; at 14.4 % somebody is woken.",
		}, limits(good, 0.01, bad, 0.144, worst), over("max(throughline:deliveries_late:ratio1h{@environment, @destination})", "late"))).
		WithPanel(number(facts{
			title: "Oldest not ended", unit: "s", empty: "nothing waits", width: 4, height: low,
			description: "For how long the oldest delivery has waited that is neither delivered, dead nor cancelled.",
		}, limits(good, 60., bad, 900., worst), over("max(throughline:deliveries_unended_age:seconds{@environment, @destination})", "oldest"))).
		WithPanel(number(facts{
			title: "Dead letters", unit: "short", empty: "none", width: 4, height: low,
			description: "Dead letters that wait to be replayed or purged.",
		}, limits(good, 1., bad), over("sum(max by (deployment_environment_name, throughline_destination) (throughline_dead_letters_waiting{@environment, @destination}))", "waiting"))).
		WithPanel(number(facts{
			title: "Alerts", unit: "short", empty: "none", width: 4, height: low,
			description: "Alerts that fire now. Each has a runbook.",
		}, limits(good, 1., worst), over(`count(ALERTS{alertstate="firing"}) or vector(0)`, "firing"))).
		WithPanel(glance(whole - third)).
		WithPanel(bars(facts{
			title: "Where it waits", unit: "s", empty: "unknown: no service tells", width: third, height: high,
			description: "For how long the oldest has waited at each stage. The first that is not near zero is to blame.",
		}, limits(good, 60., bad, 300., worst),
			now("max(throughline_publisher_lag_age_seconds{@environment})", "in ingest, for Kafka"),
			now(`max(throughline_consumer_waiting_age_seconds{messaging_consumer_group_name=~".+dispatch", @environment})`, "in Kafka, for dispatch"),
			now(`max(throughline_consumer_lag_age_seconds{messaging_destination_name=~".+\\.outcomes", @environment})`, "outcomes, for the recorder"),
			now("max(throughline_deliveries_due_age_seconds{@environment})", "retries, for the sweeper")))
}

// glance is the table of destinations: who is to blame.
func glance(width uint32) *table.PanelBuilder {
	return rows(facts{
		title: "Destinations", unit: "none", empty: "no dispatch tells of any destination", width: width, height: high,
		description: "How each destination does now; a name leads to its dashboard.",
	}, "prometheus", merged, []name{
		{of: "throughline_destination", shown: "Destination", properties: []dashboard.DynamicConfigValue{
			linked("Look at it", "/d/throughline-destinations?var-destination=${__value.text}&${environment:queryparam}"),
		}},
		{of: "Value #A", shown: "Breaker", properties: mapped(breakerStates())},
		{of: "Value #B", shown: "Delivered a second", properties: []dashboard.DynamicConfigValue{in("reqps")}},
		{of: "Value #C", shown: "Wait", properties: []dashboard.DynamicConfigValue{in("short")}},
		{of: "Value #D", shown: "Oldest", properties: append(coloured(limits(good, 60., bad, 900., worst)), in("s"))},
		{of: "Value #E", shown: "Late, last hour", properties: append(coloured(limits(good, 0.01, bad, 0.144, worst)), in("percentunit"), decimals(1))},
		{of: "Value #F", shown: "Dead letters", properties: append(coloured(limits(good, 1., bad)), in("short"))},
	},
		column("max by (throughline_destination) (throughline_breaker_state{@environment, @destination})"),
		column(`sum by (throughline_destination) (rate(throughline_deliveries_total{throughline_outcome="delivered", @environment, @destination}[$__rate_interval]))`),
		column("sum by (throughline_destination) (throughline:deliveries_unended:count{@environment, @destination})"),
		column("max by (throughline_destination) (throughline:deliveries_unended_age:seconds{@environment, @destination})"),
		column("max by (throughline_destination) (throughline:deliveries_late:ratio1h{@environment, @destination})"),
		column("max by (throughline_destination) (throughline_dead_letters_waiting{@environment, @destination})"))
}

func flow(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(graph(facts{
			title: "In and out", unit: "reqps", empty: "no requests", width: third, height: high,
			description: "What was accepted, what Kafka has acknowledged, and how deliveries ended. A request has a delivery for each destination of its route.",
		},
			over("sum(rate(throughline_requests_accepted_total{@environment, @route}[$__rate_interval]))", "accepted"),
			over("sum(rate(throughline_publisher_published_total{@environment, @route}[$__rate_interval]))", "published"),
			over("sum by (throughline_outcome) (rate(throughline_deliveries_total{@environment, @destination}[$__rate_interval]))", "{{throughline_outcome}}"))).
		WithPanel(graph(facts{
			title: "Accepting", unit: "s", empty: "no requests", width: third, height: high,
			description: "How long a client waits for its answer, whatever it is: POSTs to routes.",
		}, percentiles(`http_server_request_duration_seconds_bucket{http_request_method="POST", http_route!~"/v1/.*", @environment}`)...)).
		WithPanel(graph(facts{
			title: "End to end", unit: "s", empty: "nothing delivered", width: third, height: high,
			description: "From acceptance to the third party's success, of the deliveries that ended so, retries and waiting included.",
		}, percentiles("throughline_delivery_latency_seconds_bucket{@environment, @route, @destination}")...)).
		WithPanel(graph(facts{
			title: "Accepted by route", unit: "reqps", empty: "no requests", width: third, height: high,
			description: "Requests that were answered 201, a second.",
		}, over("sum by (throughline_route) (rate(throughline_requests_accepted_total{@environment, @route}[$__rate_interval]))", "{{throughline_route}}"))).
		WithPanel(graph(facts{
			title: "Accepting, with traces", unit: "s", empty: "no traces", width: third, height: high,
			description: "The same of the traces that are kept. Each dot leads to the trace of a request that took so long.",
		}, fromTraces(`service=~"throughline.*", span_kind="SPAN_KIND_SERVER"`))).
		WithPanel(stacked(facts{
			title: "In flight", unit: "short", empty: "no calls", width: third, height: high,
			description: "Calls to third parties that are under way.",
		}, over("sum by (throughline_destination) (throughline_inflight{@environment, @destination})", "{{throughline_destination}}")))
}

func backlog(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(stacked(facts{
			title: "Deliveries that have not ended", unit: "short", empty: "nothing waits", width: third, height: high,
			description: "Pending: no attempt was heard of yet. Retrying: at least one has failed.",
		}, over("sum by (throughline_state) (throughline:deliveries_unended:count{@environment, @destination})", "{{throughline_state}}"))).
		WithPanel(graph(facts{
			title: "Oldest that has not ended", unit: "s", empty: "nothing waits", width: third, height: high,
			description: "By destination.",
		}, over("max by (throughline_destination) (throughline:deliveries_unended_age:seconds{@environment, @destination})", "{{throughline_destination}}"))).
		WithPanel(graph(facts{
			title: "Retries that are due", unit: "short", empty: "nothing is due", width: third, height: high,
			description: "Deliveries whose time has come and that no sweeper has taken yet.",
		}, over("max(throughline_deliveries_due{@environment})", "due"))).
		WithPanel(graph(facts{
			title: "Records in Kafka", unit: "short", empty: "no consumer tells", width: third, height: high,
			description: "Records that the group that reads a topic has not finished.",
		}, over("sum by (messaging_destination_name) (throughline_consumer_lag{@environment})", "{{messaging_destination_name}}"))).
		WithPanel(graph(facts{
			title: "Oldest record in Kafka", unit: "s", empty: "no consumer tells", width: third, height: high,
			description: "For how long the oldest unfinished record of a topic has been there.",
		}, over("max by (messaging_destination_name) (throughline_consumer_lag_age_seconds{@environment})", "{{messaging_destination_name}}"))).
		WithPanel(graph(facts{
			title: "Committed, not in Kafka yet", unit: "short", empty: "no ingest", width: third, height: high,
			description: "Requests that Kafka has not acknowledged, by replica of ingest. They are safe in the database.",
		}, over("sum by (instance) (throughline_publisher_lag{@environment})", "{{instance}}"))).
		WithPanel(states(facts{
			title: "Source of the publisher", unit: "none", empty: "no ingest", width: whole, height: low,
			description: "Where each replica of ingest learns of what it has to publish. From the table after an outage of Kafka or a take-over; back to memory once it has caught up.",
		}, publisherModes(), over("max by (instance) (throughline_publisher_mode{@environment})", "{{instance}}")))
}

func trouble(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(outcomes(stacked(facts{
			title: "Attempts by outcome", unit: "reqps", empty: "no attempts", width: third, height: high,
			description: "How attempts ended. A deferred one cost nothing: it waits for a breaker, a limit or a token.",
		}, over("sum by (throughline_outcome) (rate(throughline_attempts_total{@environment, @destination}[$__rate_interval]))", "{{throughline_outcome}}")))).
		WithPanel(stacked(facts{
			title: "Errors by class", unit: "reqps", empty: "no errors", width: third, height: high,
			description: "Why attempts did not deliver: the class of the error, or what a delivery was deferred by.",
		}, over(`sum by (error_type) (rate(throughline_attempts_total{throughline_outcome!="delivered", error_type!="", @environment, @destination}[$__rate_interval]))`, "{{error_type}}"))).
		WithPanel(stacked(facts{
			title: "What clients are answered", unit: "reqps", empty: "no requests", width: third, height: high,
			description: "Ingest's answers to POSTs by status. 503 means that the database does not keep up or is away.",
		}, over(`sum by (http_response_status_code) (rate(http_server_request_duration_seconds_count{http_request_method="POST", http_route!~"/v1/.*", @environment}[$__rate_interval]))`, "{{http_response_status_code}}")))
}
