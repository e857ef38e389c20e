package main

import "github.com/grafana/grafana-foundation-sdk/go/dashboard"

// destinations is about third parties: how each does, and what Throughline does about it.
func destinations() *dashboard.DashboardBuilder {
	board := newDashboard("destinations", "Throughline: Destinations",
		"Each third party: how it answers, what is held back from it, and why.").
		WithVariable(destinationsOf())
	board.WithPanel(glance(whole))
	board.WithRow(row("How they answer"))
	answers(board)
	board.WithRow(row("What is held back"))
	heldBack(board)
	board.WithRow(row("Tokens"))
	tokens(board)
	return board
}

func answers(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(outcomes(stacked(facts{
			title: "Attempts by outcome", unit: "reqps", empty: "no attempts", width: third, height: high,
			description: "How attempts ended. A deferred one cost nothing: it waits for a breaker, a limit or a token.",
		}, over("sum by (throughline_outcome) (rate(throughline_attempts_total{@environment, @destination}[$__rate_interval]))", "{{throughline_outcome}}")))).
		WithPanel(stacked(facts{
			title: "Calls by answer", unit: "reqps", empty: "no calls", width: third, height: high,
			description: "HTTP calls by status; without one there was no answer. One that failed to connect is tried again at once, twice.",
		}, over("sum by (throughline_destination, http_response_status_code) (rate(http_client_request_duration_seconds_count{@environment, @destination}[$__rate_interval]))", "{{throughline_destination}} {{http_response_status_code}}"))).
		WithPanel(stacked(facts{
			title: "Errors by class", unit: "reqps", empty: "no errors", width: third, height: high,
			description: "Why attempts failed. What each class means is in docs/operations.md.",
		}, over(`sum by (throughline_destination, error_type) (rate(throughline_attempts_total{throughline_outcome=~"retry|dead", @environment, @destination}[$__rate_interval]))`, "{{throughline_destination}} {{error_type}}"))).
		WithPanel(graph(facts{
			title: "Calls", unit: "s", empty: "no calls", width: third, height: high,
			description: "How long calls to the chosen destinations take.",
		}, percentiles("http_client_request_duration_seconds_bucket{@environment, @destination}")...)).
		WithPanel(graph(facts{
			title: "Calls by destination", unit: "s", empty: "no calls", width: third, height: high,
			description: "95 in 100 calls took no longer.",
		}, over("histogram_quantile(0.95, sum by (throughline_destination, le) (rate(http_client_request_duration_seconds_bucket{@environment, @destination}[$__rate_interval])))", "{{throughline_destination}}"))).
		WithPanel(graph(facts{
			title: "Calls, with traces", unit: "s", empty: "no traces", width: third, height: high,
			description: "The same of the traces that are kept. Each dot leads to the trace of a call that took so long.",
		}, fromTraces(`span_kind="SPAN_KIND_CLIENT", @destination`))).
		WithPanel(graph(facts{
			title: "End to end", unit: "s", empty: "nothing delivered", width: half, height: high,
			description: "From acceptance to success: 95 in 100 deliveries took no longer, retries and waiting included.",
		}, over("histogram_quantile(0.95, sum by (throughline_destination, le) (rate(throughline_delivery_latency_seconds_bucket{@environment, @destination}[$__rate_interval])))", "{{throughline_destination}}"))).
		WithPanel(graph(facts{
			title: "Late, of an hour's deliveries", unit: "percentunit", empty: "no deliveries", width: half, height: high,
			description: "The part that took longer than 60 s or still waits. The objective allows 1 %.",
		},
			over("max by (throughline_destination) (throughline:deliveries_late:ratio1h{@environment, @destination})", "{{throughline_destination}}"),
			over("1 - max(throughline:delivery_objective:ratio)", "allowed")))
}

func heldBack(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(states(facts{
			title: "Breakers", unit: "none", empty: "no dispatch tells", width: half, height: high,
			description: "Open: no calls. Probing: a few. Of several replicas of dispatch, the worst.",
		}, breakerStates(), over("max by (throughline_destination) (throughline_breaker_state{@environment, @destination})", "{{throughline_destination}}"))).
		WithPanel(stacked(facts{
			title: "Deferrals by cause", unit: "reqps", empty: "nothing deferred", width: half, height: high,
			description: "Deliveries that were put off at no cost, a second.",
		}, over(`sum by (throughline_destination, error_type) (rate(throughline_attempts_total{throughline_outcome="deferred", @environment, @destination}[$__rate_interval]))`, "{{throughline_destination}} {{error_type}}"))).
		WithPanel(graph(facts{
			title: "In flight, and the most at once", unit: "short", empty: "no calls", width: third, height: high,
			description: "Calls under way against limits.concurrency, of all replicas of dispatch together.",
		},
			over("sum by (throughline_destination) (throughline_inflight{@environment, @destination})", "{{throughline_destination}}"),
			over("sum by (throughline_destination) (throughline_limit_concurrency{@environment, @destination})", "{{throughline_destination}}, the most"))).
		WithPanel(graph(facts{
			title: "Retries scheduled", unit: "reqps", empty: "no retries", width: third, height: high,
			description: "Failed attempts that are followed by another, a second.",
		}, over("sum by (throughline_destination) (rate(throughline_retries_scheduled_total{@environment, @destination}[$__rate_interval]))", "{{throughline_destination}}"))).
		WithPanel(stacked(facts{
			title: "Deliveries that have not ended", unit: "short", empty: "nothing waits", width: third, height: high,
			description: "By destination and state.",
		}, over("sum by (throughline_destination, throughline_state) (throughline:deliveries_unended:count{@environment, @destination})", "{{throughline_destination}} {{throughline_state}}")))
}

func tokens(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(states(facts{
			title: "Credentials", unit: "none", empty: "no destination wants a token", width: half, height: high,
			description: "Refused: the token endpoint does not accept them, and somebody has to mend that.",
		}, meanings(meaning{"0", "accepted", good}, meaning{"1", "refused", worst}),
			over("max by (throughline_destination) (throughline_token_refused{@environment, @destination})", "{{throughline_destination}}"))).
		WithPanel(stacked(facts{
			title: "Token requests", unit: "reqps", empty: "no destination wants a token", width: half, height: high,
			description: "Hit: a cached token served. Miss: one was fetched. Error: there was none to be had.",
		}, over("sum by (throughline_destination, throughline_result) (rate(throughline_token_requests_total{@environment, @destination}[$__rate_interval]))", "{{throughline_destination}} {{throughline_result}}")))
}
