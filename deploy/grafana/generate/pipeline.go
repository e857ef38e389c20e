package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/table"
)

// pipeline is the overview: whether requests flow, whether anything is stuck, and which component is the cause.
func pipeline() *dashboard.DashboardBuilder {
	board := newDashboard("pipeline", "Throughline: Pipeline",
		"From the client's POST to the third party's response: whether requests flow, whether anything is stuck, and which component is the cause.").
		WithVariable(routes()).
		WithVariable(destinationsOf())
	atAGlance(board)
	board.WithRow(row("Flow"))
	flow(board)
	board.WithRow(row("Backlog"))
	backlog(board)
	board.WithRow(row("Errors"))
	errors(board)
	return board
}

// atAGlance is the first row: numbers that are green in normal operation, and panels that show the cause if they are not.
func atAGlance(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(number(facts{
			title: "Accepted", unit: "reqps", empty: "no ingest", width: 4, height: low,
			description: "Requests per second that were committed and answered 201.",
		}, limits(unknown), over("sum(rate(throughline_requests_accepted_total{@environment, @route}[$__rate_interval]))", "accepted"))).
		WithPanel(number(facts{
			title: "Delivered", unit: "reqps", empty: "nothing yet", width: 4, height: low,
			description: "Successful deliveries per second.",
		}, limits(unknown), over(`sum(rate(throughline_deliveries_total{throughline_outcome="delivered", @environment, @destination}[$__rate_interval]))`, "delivered"))).
		WithPanel(number(facts{
			title: "Late deliveries, 1 h", unit: "percentunit", empty: "no deliveries", width: 4, height: low,
			description: "Share of the last hour's deliveries that took longer than 60 s or still wait, for the worst destination. " +
				"The objective allows 1 %; 14.4 % page the on-call engineer.",
		}, limits(good, 0.01, bad, 0.144, worst), over("max(throughline:deliveries_late:ratio1h{@environment, @destination})", "late"))).
		WithPanel(number(facts{
			title: "Oldest delivery", unit: "s", empty: "none waits", width: 4, height: low,
			description: "Age of the oldest delivery that is not delivered, dead or cancelled.",
		}, limits(good, 60., bad, 900., worst), over("max(throughline:deliveries_open_age:seconds{@environment, @destination})", "oldest"))).
		WithPanel(number(facts{
			title: "Dead letters", unit: "short", empty: "none", width: 4, height: low,
			description: "Dead letters that are not replayed or purged yet.",
		}, limits(good, 1., bad), over("sum(max by (deployment_environment_name, throughline_destination) (throughline_dead_letters_waiting{@environment, @destination}))", "open"))).
		WithPanel(number(facts{
			title: "Alerts", unit: "short", empty: "none", width: 4, height: low,
			description: "Firing alerts. Each has a runbook.",
		}, limits(good, 1., worst), over(`count(ALERTS{alertstate="firing"}) or vector(0)`, "firing"))).
		WithPanel(glance(whole - third)).
		WithPanel(bars(facts{
			title: "Waiting time by stage", unit: "s", empty: "unknown: no data from the services", width: third, height: high,
			description: "Age of the oldest item at each stage. The first stage that is not near zero is the cause.",
		}, limits(good, 60., bad, 300., worst),
			now("max(throughline_publisher_lag_age_seconds{@environment})", "ingest → Kafka"),
			now(`max(throughline_consumer_waiting_age_seconds{messaging_consumer_group_name=~".+dispatch", @environment})`, "Kafka → dispatch"),
			now(`max(throughline_consumer_lag_age_seconds{messaging_destination_name=~".+\\.outcomes", @environment})`, "outcomes → recorder"),
			now("max(throughline_deliveries_due_age_seconds{@environment})", "retries → sweeper")))
}

// glance is the table of destinations.
func glance(width uint32) *table.PanelBuilder {
	return rows(facts{
		title: "Destinations", unit: "none", empty: "no data from dispatch", width: width, height: high,
		description: "The current state of each destination. Its name links to its dashboard.",
	}, "prometheus", merged, []name{
		{of: "throughline_destination", shown: "Destination", properties: []dashboard.DynamicConfigValue{
			linked("Show destination", "/d/throughline-destinations?var-destination=${__value.text}&${environment:queryparam}"),
		}},
		{of: "Value #A", shown: "Breaker", properties: mapped(breakerStates())},
		{of: "Value #B", shown: "Delivered per second", properties: []dashboard.DynamicConfigValue{in("reqps")}},
		{of: "Value #C", shown: "Waiting", properties: []dashboard.DynamicConfigValue{in("short")}},
		{of: "Value #D", shown: "Oldest delivery", properties: append(coloured(limits(good, 60., bad, 900., worst)), in("s"))},
		{of: "Value #E", shown: "Late, 1 h", properties: append(coloured(limits(good, 0.01, bad, 0.144, worst)), in("percentunit"), decimals(1))},
		{of: "Value #F", shown: "Dead letters", properties: append(coloured(limits(good, 1., bad)), in("short"))},
	},
		column("max by (throughline_destination) (throughline_breaker_state{@environment, @destination})"),
		column(`sum by (throughline_destination) (rate(throughline_deliveries_total{throughline_outcome="delivered", @environment, @destination}[$__rate_interval]))`),
		column("sum by (throughline_destination) (throughline:deliveries_open:count{@environment, @destination})"),
		column("max by (throughline_destination) (throughline:deliveries_open_age:seconds{@environment, @destination})"),
		column("max by (throughline_destination) (throughline:deliveries_late:ratio1h{@environment, @destination})"),
		column("max by (throughline_destination) (throughline_dead_letters_waiting{@environment, @destination})"))
}

func flow(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(graph(facts{
			title: "In and out", unit: "reqps", empty: "no requests", width: third, height: high,
			description: "Accepted requests, requests acknowledged by Kafka, and ended deliveries by outcome. A request has one delivery for each destination of its route.",
		},
			over("sum(rate(throughline_requests_accepted_total{@environment, @route}[$__rate_interval]))", "accepted"),
			over("sum(rate(throughline_publisher_published_total{@environment, @route}[$__rate_interval]))", "published"),
			over("sum by (throughline_outcome) (rate(throughline_deliveries_total{@environment, @destination}[$__rate_interval]))", "{{throughline_outcome}}"))).
		WithPanel(graph(facts{
			title: "Response time", unit: "s", empty: "no requests", width: third, height: high,
			description: "Response time of POSTs to routes, for all statuses.",
		}, percentiles(`http_server_request_duration_seconds_bucket{http_request_method="POST", http_route!~"/v1/.*", @environment}`)...)).
		WithPanel(graph(facts{
			title: "End to end", unit: "s", empty: "nothing delivered", width: third, height: high,
			description: "Time from acceptance to success, including retries and waiting.",
		}, percentiles("throughline_delivery_latency_seconds_bucket{@environment, @route, @destination}")...)).
		WithPanel(graph(facts{
			title: "Accepted by route", unit: "reqps", empty: "no requests", width: third, height: high,
			description: "Requests per second that were answered 201.",
		}, over("sum by (throughline_route) (rate(throughline_requests_accepted_total{@environment, @route}[$__rate_interval]))", "{{throughline_route}}"))).
		WithPanel(graph(facts{
			title: "Response time, with traces", unit: "s", empty: "no traces", width: third, height: high,
			description: "95th percentile among the kept traces. Each dot links to the trace of a request with that duration.",
		}, fromTraces(`service=~"throughline.*", span_kind="SPAN_KIND_SERVER"`))).
		WithPanel(stacked(facts{
			title: "Calls in flight", unit: "short", empty: "no calls", width: third, height: high,
			description: "Calls to third parties in progress.",
		}, over("sum by (throughline_destination) (throughline_inflight{@environment, @destination})", "{{throughline_destination}}")))
}

func backlog(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(stacked(facts{
			title: "Open deliveries", unit: "short", empty: "none", width: third, height: high,
			description: "Pending: no attempt is reported yet. Retrying: at least one attempt has failed.",
		}, over("sum by (throughline_state) (throughline:deliveries_open:count{@environment, @destination})", "{{throughline_state}}"))).
		WithPanel(graph(facts{
			title: "Oldest open delivery", unit: "s", empty: "none waits", width: third, height: high,
			description: "Age of the oldest open delivery of each destination.",
		}, over("max by (throughline_destination) (throughline:deliveries_open_age:seconds{@environment, @destination})", "{{throughline_destination}}"))).
		WithPanel(graph(facts{
			title: "Due deliveries", unit: "short", empty: "none due", width: third, height: high,
			description: "Deliveries that are due and not yet published by a sweeper.",
		}, over("max(throughline_deliveries_due{@environment})", "due"))).
		WithPanel(graph(facts{
			title: "Records in Kafka", unit: "short", empty: "no data from consumers", width: third, height: high,
			description: "Records of each topic that its consumer group has not finished.",
		}, over("sum by (messaging_destination_name) (throughline_consumer_lag{@environment})", "{{messaging_destination_name}}"))).
		WithPanel(graph(facts{
			title: "Oldest record in Kafka", unit: "s", empty: "no data from consumers", width: third, height: high,
			description: "Age of the oldest unfinished record of each topic.",
		}, over("max by (messaging_destination_name) (throughline_consumer_lag_age_seconds{@environment})", "{{messaging_destination_name}}"))).
		WithPanel(graph(facts{
			title: "Unpublished requests", unit: "short", empty: "no ingest", width: third, height: high,
			description: "Committed requests that Kafka has not acknowledged, by ingest replica. They are safe in the database.",
		}, over("sum by (instance) (throughline_publisher_lag{@environment})", "{{instance}}"))).
		WithPanel(states(facts{
			title: "Publisher mode", unit: "none", empty: "no ingest", width: whole, height: low,
			description: "Source from which each ingest replica publishes requests. After an outage of Kafka or a take-over, it reads the outbox table until it has caught up, then memory.",
		}, publisherModes(), over("max by (instance) (throughline_publisher_mode{@environment})", "{{instance}}")))
}

func errors(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(outcomes(stacked(facts{
			title: "Attempts by outcome", unit: "reqps", empty: "no attempts", width: third, height: high,
			description: "Outcomes of attempts. A deferred delivery waits for a breaker, a limit or a token, and uses up no attempt.",
		}, over("sum by (throughline_outcome) (rate(throughline_attempts_total{@environment, @destination}[$__rate_interval]))", "{{throughline_outcome}}")))).
		WithPanel(stacked(facts{
			title: "Errors by class", unit: "reqps", empty: "no errors", width: third, height: high,
			description: "Unsuccessful attempts by error class, and deferrals by cause.",
		}, over(`sum by (error_type) (rate(throughline_attempts_total{throughline_outcome!="delivered", error_type!="", @environment, @destination}[$__rate_interval]))`, "{{error_type}}"))).
		WithPanel(stacked(facts{
			title: "Responses to clients", unit: "reqps", empty: "no requests", width: third, height: high,
			description: "Responses of ingest to POSTs, by status. 503 means that the database is down or too slow.",
		}, over(`sum by (http_response_status_code) (rate(http_server_request_duration_seconds_count{http_request_method="POST", http_route!~"/v1/.*", @environment}[$__rate_interval]))`, "{{http_response_status_code}}")))
}
