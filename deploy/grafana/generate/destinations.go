package main

import "github.com/grafana/grafana-foundation-sdk/go/dashboard"

// destinations shows the third parties: how each responds, and how Throughline limits the calls to it.
func destinations() *dashboard.DashboardBuilder {
	board := newDashboard("destinations", "Throughline: Destinations",
		"Each third party: its responses, its limits, and the deliveries that wait for it.").
		WithVariable(destinationsOf())
	board.WithPanel(glance(whole))
	board.WithRow(row("Responses"))
	answers(board)
	board.WithRow(row("Waiting and limits"))
	heldBack(board)
	board.WithRow(row("Tokens"))
	tokens(board)
	return board
}

func answers(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(outcomes(stacked(facts{
			title: "Attempts by outcome", unit: "reqps", empty: "no attempts", width: third, height: high,
			description: "Outcomes of attempts. A deferred delivery waits for a breaker, a limit or a token, and uses up no attempt.",
		}, over("sum by (throughline_outcome) (rate(throughline_attempts_total{@environment, @destination}[$__rate_interval]))", "{{throughline_outcome}}")))).
		WithPanel(stacked(facts{
			title: "Calls by status", unit: "reqps", empty: "no calls", width: third, height: high,
			description: "HTTP calls by response status. Calls without a status received no response. A call that failed to connect is retried immediately, up to twice by default.",
		}, over("sum by (throughline_destination, http_response_status_code) (rate(http_client_request_duration_seconds_count{@environment, @destination}[$__rate_interval]))", "{{throughline_destination}} {{http_response_status_code}}"))).
		WithPanel(stacked(facts{
			title: "Errors by class", unit: "reqps", empty: "no errors", width: third, height: high,
			description: "Causes of failed attempts. docs/operations.md explains each class.",
		}, over(`sum by (throughline_destination, error_type) (rate(throughline_attempts_total{throughline_outcome=~"retry|dead", @environment, @destination}[$__rate_interval]))`, "{{throughline_destination}} {{error_type}}"))).
		WithPanel(graph(facts{
			title: "Call duration", unit: "s", empty: "no calls", width: third, height: high,
			description: "Duration of calls to the selected destinations.",
		}, percentiles("http_client_request_duration_seconds_bucket{@environment, @destination}")...)).
		WithPanel(graph(facts{
			title: "Call duration by destination", unit: "s", empty: "no calls", width: third, height: high,
			description: "95th percentile of the duration of calls.",
		}, over("histogram_quantile(0.95, sum by (throughline_destination, le) (rate(http_client_request_duration_seconds_bucket{@environment, @destination}[$__rate_interval])))", "{{throughline_destination}}"))).
		WithPanel(graph(facts{
			title: "Call duration, with traces", unit: "s", empty: "no traces", width: third, height: high,
			description: "95th percentile among the kept traces. Each dot links to the trace of a call with that duration.",
		}, fromTraces(`span_kind="SPAN_KIND_CLIENT", @destination`))).
		WithPanel(graph(facts{
			title: "End to end", unit: "s", empty: "nothing delivered", width: half, height: high,
			description: "95th percentile of the time from acceptance to success, including retries and waiting.",
		}, over("histogram_quantile(0.95, sum by (throughline_destination, le) (rate(throughline_delivery_latency_seconds_bucket{@environment, @destination}[$__rate_interval])))", "{{throughline_destination}}"))).
		WithPanel(graph(facts{
			title: "Late deliveries, 1 h", unit: "percentunit", empty: "no deliveries", width: half, height: high,
			description: "Share of the deliveries in an hour that took longer than 60 s or still wait. The objective allows 1 %.",
		},
			over("max by (throughline_destination) (throughline:deliveries_late:ratio1h{@environment, @destination})", "{{throughline_destination}}"),
			over("1 - max(throughline:delivery_objective:ratio)", "allowed")))
}

func heldBack(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(states(facts{
			title: "Breakers", unit: "none", empty: "no data from dispatch", width: half, height: high,
			description: "Open: no calls. Probing: a few calls. Shows the worst state among the dispatch replicas.",
		}, breakerStates(), over("max by (throughline_destination) (throughline_breaker_state{@environment, @destination})", "{{throughline_destination}}"))).
		WithPanel(stacked(facts{
			title: "Deferrals by cause", unit: "reqps", empty: "nothing deferred", width: half, height: high,
			description: "Deferred deliveries per second. A deferral uses up no attempt.",
		}, over(`sum by (throughline_destination, error_type) (rate(throughline_attempts_total{throughline_outcome="deferred", @environment, @destination}[$__rate_interval]))`, "{{throughline_destination}} {{error_type}}"))).
		WithPanel(graph(facts{
			title: "Calls in flight, with limit", unit: "short", empty: "no calls", width: third, height: high,
			description: "Calls in progress and limits.concurrency, summed over all dispatch replicas.",
		},
			over("sum by (throughline_destination) (throughline_inflight{@environment, @destination})", "{{throughline_destination}}"),
			over("sum by (throughline_destination) (throughline_limit_concurrency{@environment, @destination})", "{{throughline_destination}}, limit"))).
		WithPanel(graph(facts{
			title: "Retries scheduled", unit: "reqps", empty: "no retries", width: third, height: high,
			description: "Failed attempts per second that are followed by a retry.",
		}, over("sum by (throughline_destination) (rate(throughline_retries_scheduled_total{@environment, @destination}[$__rate_interval]))", "{{throughline_destination}}"))).
		WithPanel(stacked(facts{
			title: "Open deliveries", unit: "short", empty: "none", width: third, height: high,
			description: "By destination and state.",
		}, over("sum by (throughline_destination, throughline_state) (throughline:deliveries_open:count{@environment, @destination})", "{{throughline_destination}} {{throughline_state}}")))
}

func tokens(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(states(facts{
			title: "Credentials", unit: "none", empty: "no destination uses a token", width: half, height: high,
			description: "Refused: the token endpoint rejects the credentials. An operator has to correct them.",
		}, meanings(meaning{"0", "accepted", good}, meaning{"1", "refused", worst}),
			over("max by (throughline_destination) (throughline_token_refused{@environment, @destination})", "{{throughline_destination}}"))).
		WithPanel(stacked(facts{
			title: "Token requests", unit: "reqps", empty: "no destination uses a token", width: half, height: high,
			description: "Hit: a cached token was used. Miss: a token was fetched. Error: no token could be fetched.",
		}, over("sum by (throughline_destination, throughline_result) (rate(throughline_token_requests_total{@environment, @destination}[$__rate_interval]))", "{{throughline_destination}} {{throughline_result}}")))
}
