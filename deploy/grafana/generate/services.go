package main

import "github.com/grafana/grafana-foundation-sdk/go/dashboard"

// services is about the processes themselves, and what they stand on.
func services() *dashboard.DashboardBuilder {
	board := newDashboard("services", "Throughline: Services",
		"The processes: what they use, and how HTTP, the database, Kafka and telemetry do for them.").
		WithVariable(variable("service", "Service", `label_values(process_uptime_seconds{job=~"throughline/.+", @environment}, job)`)).
		WithVariable(variable("instance", "Replica", `label_values(process_uptime_seconds{job=~"$service", @environment}, instance)`))
	board.WithRow(row("Processes"))
	processes(board)
	board.WithRow(row("HTTP"))
	http(board)
	board.WithRow(row("Database"))
	database(board)
	board.WithRow(row("Kafka"))
	kafka(board)
	board.WithRow(row("Telemetry"))
	telemetry(board)
	return board
}

func processes(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(graph(facts{
			title: "Replicas", unit: "short", empty: "none runs", width: third, height: high,
			description: "Processes that were heard of in the last minute.",
		}, over("count by (job) (last_over_time(process_uptime_seconds{@service, @environment}[1m]))", "{{job}}"))).
		WithPanel(graph(facts{
			title: "Uptime", unit: "dtdurations", empty: "none runs", width: third, height: high,
			description: "It begins anew with each restart.",
		}, over("max by (job, instance) (process_uptime_seconds{@service, @environment})", "{{job}} {{instance}}"))).
		WithPanel(graph(facts{
			title: "Node ids", unit: "short", empty: "no ingest", width: third, height: high,
			description: "Leased in the database: one for each replica of ingest, and those of replicas that died, until their lease ends. And how many may be.",
		}, over("max by (deployment_environment_name) (throughline_nodes_leased{@environment})", "leased {{deployment_environment_name}}"),
			over("min by (deployment_environment_name) (throughline_nodes_limit{@environment})", "limit {{deployment_environment_name}}"))).
		WithPanel(graph(facts{
			title: "CPU", unit: "none", empty: "none runs", width: third, height: high,
			description: "Cores in use: seconds of CPU a second.",
		}, over("sum by (job, instance) (rate(process_cpu_time_seconds_total{@service, @environment}[$__rate_interval]))", "{{job}} {{instance}}"))).
		WithPanel(graph(facts{
			title: "Memory", unit: "bytes", empty: "none runs", width: third, height: high,
			description: "Resident.",
		}, over("max by (job, instance) (process_memory_usage_bytes{@service, @environment})", "{{job}} {{instance}}"))).
		WithPanel(graph(facts{
			title: "Workers at work", unit: "percentunit", empty: "none runs", width: third, height: high,
			description: "The part of the time that the runtime's worker threads were busy. Near 100 %, everything waits for a turn.",
		}, over("sum by (job, instance) (rate(tokio_runtime_busy_seconds_total{@service, @environment}[$__rate_interval])) / sum by (job, instance) (tokio_runtime_workers{@service, @environment})", "{{job}} {{instance}}"))).
		WithPanel(graph(facts{
			title: "Tasks", unit: "short", empty: "none runs", width: third, height: high,
			description: "Alive in the runtime, and those that wait in its global queue.",
		},
			over("max by (job, instance) (tokio_runtime_alive_tasks{@service, @environment})", "{{job}} {{instance}}"),
			over("max by (job, instance) (tokio_runtime_global_queue_depth{@service, @environment})", "{{job}} {{instance}}, queued"))).
		WithPanel(graph(facts{
			title: "Threads", unit: "short", empty: "none runs", width: third, height: high,
			description: "Of the runtime, of librdkafka, and for what blocks.",
		}, over("max by (job, instance) (process_thread_count{@service, @environment})", "{{job}} {{instance}}"))).
		WithPanel(graph(facts{
			title: "Open files", unit: "short", empty: "none runs", width: third, height: high,
			description: "Connections among them. Mind the limit of the process.",
		}, over("max by (job, instance) (process_open_file_descriptor_count{@service, @environment})", "{{job}} {{instance}}")))
}

func http(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(stacked(facts{
			title: "Answers", unit: "reqps", empty: "no requests", width: third, height: high,
			description: "Requests to ingest by route and status.",
		}, over("sum by (http_request_method, http_route, http_response_status_code) (rate(http_server_request_duration_seconds_count{@service, @environment}[$__rate_interval]))", "{{http_request_method}} {{http_route}} {{http_response_status_code}}"))).
		WithPanel(graph(facts{
			title: "Time to answer", unit: "s", empty: "no requests", width: third, height: high,
			description: "95 in 100 requests took no longer.",
		}, over("histogram_quantile(0.95, sum by (http_request_method, http_route, le) (rate(http_server_request_duration_seconds_bucket{@service, @environment}[$__rate_interval])))", "{{http_request_method}} {{http_route}}"))).
		WithPanel(graph(facts{
			title: "Requests under way", unit: "short", empty: "no requests", width: third, height: high,
			description: "By replica of ingest. Most of them wait for their commit.",
		}, over("sum by (instance) (http_server_active_requests{@service, @environment})", "{{instance}}")))
}

func database(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(graph(facts{
			title: "Operations", unit: "ops", empty: "no ingest", width: third, height: high,
			description: "By name; accept is a commit of many requests.",
		}, over("sum by (db_operation_name) (rate(db_client_operation_duration_seconds_count{@service, @environment}[$__rate_interval]))", "{{db_operation_name}}"))).
		WithPanel(graph(facts{
			title: "Time of operations", unit: "s", empty: "no ingest", width: third, height: high,
			description: "95 in 100 took no longer.",
		}, over("histogram_quantile(0.95, sum by (db_operation_name, le) (rate(db_client_operation_duration_seconds_bucket{@service, @environment}[$__rate_interval])))", "{{db_operation_name}}"))).
		WithPanel(stacked(facts{
			title: "Errors", unit: "ops", empty: "no errors", width: third, height: high,
			description: "Operations that failed.",
		}, over(`sum by (db_operation_name, error_type) (rate(db_client_operation_duration_seconds_count{error_type!="", @service, @environment}[$__rate_interval]))`, "{{db_operation_name}} {{error_type}}"))).
		WithPanel(graph(facts{
			title: "Connections", unit: "short", empty: "no ingest", width: half, height: high,
			description: "Of all pools: in use, idle, and how many there may be. When all are in use, everything waits.",
		},
			over("sum by (db_client_connection_state) (db_client_connection_count{@service, @environment})", "{{db_client_connection_state}}"),
			over("sum(db_client_connection_max{@service, @environment})", "the most"))).
		WithPanel(graph(facts{
			title: "Requests in a commit", unit: "short", empty: "no requests", width: half, height: high,
			description: "How many requests share a commit. The more come at once, the more do.",
		}, percentiles("throughline_writer_batch_size_bucket{@service, @environment}")...))
}

func kafka(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(graph(facts{
			title: "Sent", unit: "mps", empty: "nothing sent", width: third, height: high,
			description: "Records that the broker has acknowledged, or refused, by topic.",
		}, over("sum by (messaging_destination_name, error_type) (rate(messaging_client_sent_messages_total{@service, @environment}[$__rate_interval]))", "{{messaging_destination_name}} {{error_type}}"))).
		WithPanel(graph(facts{
			title: "Time to send", unit: "s", empty: "nothing sent", width: third, height: high,
			description: "Until the broker's acknowledgement: 95 in 100 took no longer.",
		}, over("histogram_quantile(0.95, sum by (messaging_destination_name, le) (rate(messaging_client_operation_duration_seconds_bucket{@service, @environment}[$__rate_interval])))", "{{messaging_destination_name}}"))).
		WithPanel(graph(facts{
			title: "Consumed", unit: "mps", empty: "nothing consumed", width: third, height: high,
			description: "Records that were fetched, by topic.",
		}, over("sum by (messaging_destination_name) (rate(messaging_client_consumed_messages_total{@service, @environment}[$__rate_interval]))", "{{messaging_destination_name}}"))).
		WithPanel(graph(facts{
			title: "Time to process", unit: "s", empty: "nothing consumed", width: third, height: high,
			description: "Of a record: 95 in 100 took no longer. In dispatch it includes the call.",
		}, over("histogram_quantile(0.95, sum by (messaging_destination_name, le) (rate(messaging_process_duration_seconds_bucket{@service, @environment}[$__rate_interval])))", "{{messaging_destination_name}}"))).
		WithPanel(graph(facts{
			title: "Waiting to be sent", unit: "short", empty: "no producer tells", width: third, height: high,
			description: "Records in librdkafka's queue, by replica and client.",
		}, over("sum by (instance, messaging_client_id) (throughline_kafka_queue_messages{@service, @environment})", "{{instance}} {{messaging_client_id}}"))).
		WithPanel(graph(facts{
			title: "Round trip to brokers", unit: "s", empty: "no broker is known", width: third, height: high,
			description: "The mean, by broker, of the slowest client.",
		}, over("max by (messaging_kafka_broker_id) (throughline_kafka_broker_latency_seconds{@service, @environment})", "broker {{messaging_kafka_broker_id}}"))).
		WithPanel(stacked(facts{
			title: "Errors of brokers", unit: "ops", empty: "no errors", width: half, height: high,
			description: "Errors of transmission, and requests that timed out.",
		}, over("sum by (messaging_kafka_broker_id) (rate(throughline_kafka_broker_errors_total{@service, @environment}[$__rate_interval]))", "broker {{messaging_kafka_broker_id}}"))).
		WithPanel(stacked(facts{
			title: "Published again", unit: "reqps", empty: "nothing", width: half, height: high,
			description: "What the sweeper sends: planned, because its time had come; silent, because nothing was heard of it for ingest.patience.",
		}, over("sum by (throughline_cause) (rate(throughline_sweeper_published_total{@service, @environment}[$__rate_interval]))", "{{throughline_cause}}")))
}

func telemetry(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(stacked(facts{
			title: "Dropped by services", unit: "short", empty: "nothing was ever dropped", width: third, height: high,
			description: "Spans, log records and metric exports that never reached the Collector, in the 15 minutes before.",
		}, over("sum by (job, throughline_signal, error_type) (throughline:telemetry_dropped:increase15m{@environment})", "{{job}} {{throughline_signal}} {{error_type}}"))).
		WithPanel(graph(facts{
			title: "Taken by the Collector", unit: "cps", empty: "no Collector", width: third, height: high,
			description: "What came in, a second, of each signal.",
		},
			over("sum(rate(otelcol_receiver_accepted_spans[$__rate_interval]))", "spans"),
			over("sum(rate(otelcol_receiver_accepted_metric_points[$__rate_interval]))", "metric points"),
			over("sum(rate(otelcol_receiver_accepted_log_records[$__rate_interval]))", "log records"))).
		WithPanel(graph(facts{
			title: "The Collector's queues", unit: "percentunit", empty: "no Collector", width: third, height: high,
			description: "How full each is. From a full one things are lost.",
		}, over("max by (exporter) (otelcol_exporter_queue_size) / max by (exporter) (otelcol_exporter_queue_capacity)", "{{exporter}}")))
}
