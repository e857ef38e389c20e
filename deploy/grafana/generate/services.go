package main

import "github.com/grafana/grafana-foundation-sdk/go/dashboard"

// services shows the processes and their dependencies.
func services() *dashboard.DashboardBuilder {
	board := newDashboard("services", "Throughline: Services",
		"The processes, their resource usage, and their HTTP, database, Kafka and telemetry metrics.").
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
			title: "Replicas", unit: "short", empty: "no process runs", width: third, height: high,
			description: "Processes that exported metrics in the last minute.",
		}, over("count by (job) (last_over_time(process_uptime_seconds{@service, @environment}[1m]))", "{{job}}"))).
		WithPanel(graph(facts{
			title: "Uptime", unit: "dtdurations", empty: "no process runs", width: third, height: high,
			description: "Time since the start of each process.",
		}, over("max by (job, instance) (process_uptime_seconds{@service, @environment})", "{{job}} {{instance}}"))).
		WithPanel(graph(facts{
			title: "Node ids", unit: "short", empty: "no ingest", width: third, height: high,
			description: "Leased node ids, and the limit. Each ingest replica leases one; the lease of a replica that died lasts until it expires.",
		}, over("max by (deployment_environment_name) (throughline_nodes_leased{@environment})", "leased {{deployment_environment_name}}"),
			over("min by (deployment_environment_name) (throughline_nodes_limit{@environment})", "limit {{deployment_environment_name}}"))).
		WithPanel(graph(facts{
			title: "CPU", unit: "none", empty: "no process runs", width: third, height: high,
			description: "CPU seconds per second, which is the number of cores in use.",
		}, over("sum by (job, instance) (rate(process_cpu_time_seconds_total{@service, @environment}[$__rate_interval]))", "{{job}} {{instance}}"))).
		WithPanel(graph(facts{
			title: "Memory", unit: "bytes", empty: "no process runs", width: third, height: high,
			description: "Resident memory.",
		}, over("max by (job, instance) (process_memory_usage_bytes{@service, @environment})", "{{job}} {{instance}}"))).
		WithPanel(graph(facts{
			title: "Busy worker threads", unit: "percentunit", empty: "no process runs", width: third, height: high,
			description: "Share of the time in which the runtime's worker threads were busy. Near 100 %, all tasks wait for a thread.",
		}, over("sum by (job, instance) (rate(tokio_runtime_busy_seconds_total{@service, @environment}[$__rate_interval])) / sum by (job, instance) (tokio_runtime_workers{@service, @environment})", "{{job}} {{instance}}"))).
		WithPanel(graph(facts{
			title: "Tasks", unit: "short", empty: "no process runs", width: third, height: high,
			description: "Tasks of the runtime, and tasks in its global queue.",
		},
			over("max by (job, instance) (tokio_runtime_alive_tasks{@service, @environment})", "{{job}} {{instance}}"),
			over("max by (job, instance) (tokio_runtime_global_queue_depth{@service, @environment})", "{{job}} {{instance}}, queued"))).
		WithPanel(graph(facts{
			title: "Threads", unit: "short", empty: "no process runs", width: third, height: high,
			description: "Threads of the runtime, of librdkafka, and for blocking operations.",
		}, over("max by (job, instance) (process_thread_count{@service, @environment})", "{{job}} {{instance}}"))).
		WithPanel(graph(facts{
			title: "Open files", unit: "short", empty: "no process runs", width: third, height: high,
			description: "Open file descriptors, including connections. The operating system limits them per process.",
		}, over("max by (job, instance) (process_open_file_descriptor_count{@service, @environment})", "{{job}} {{instance}}")))
}

func http(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(stacked(facts{
			title: "Responses", unit: "reqps", empty: "no requests", width: third, height: high,
			description: "Responses of ingest, by route and status.",
		}, over("sum by (http_request_method, http_route, http_response_status_code) (rate(http_server_request_duration_seconds_count{@service, @environment}[$__rate_interval]))", "{{http_request_method}} {{http_route}} {{http_response_status_code}}"))).
		WithPanel(graph(facts{
			title: "Response time", unit: "s", empty: "no requests", width: third, height: high,
			description: "95th percentile of the response time.",
		}, over("histogram_quantile(0.95, sum by (http_request_method, http_route, le) (rate(http_server_request_duration_seconds_bucket{@service, @environment}[$__rate_interval])))", "{{http_request_method}} {{http_route}}"))).
		WithPanel(graph(facts{
			title: "Requests in progress", unit: "short", empty: "no requests", width: third, height: high,
			description: "Requests in progress, by ingest replica. Most of them wait for their commit.",
		}, over("sum by (instance) (http_server_active_requests{@service, @environment})", "{{instance}}")))
}

func database(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(graph(facts{
			title: "Operations", unit: "ops", empty: "no ingest", width: third, height: high,
			description: "Database operations by name. One accept commits many requests.",
		}, over("sum by (db_operation_name) (rate(db_client_operation_duration_seconds_count{@service, @environment}[$__rate_interval]))", "{{db_operation_name}}"))).
		WithPanel(graph(facts{
			title: "Duration of operations", unit: "s", empty: "no ingest", width: third, height: high,
			description: "95th percentile of the duration of database operations.",
		}, over("histogram_quantile(0.95, sum by (db_operation_name, le) (rate(db_client_operation_duration_seconds_bucket{@service, @environment}[$__rate_interval])))", "{{db_operation_name}}"))).
		WithPanel(stacked(facts{
			title: "Errors", unit: "ops", empty: "no errors", width: third, height: high,
			description: "Failed database operations.",
		}, over(`sum by (db_operation_name, error_type) (rate(db_client_operation_duration_seconds_count{error_type!="", @service, @environment}[$__rate_interval]))`, "{{db_operation_name}} {{error_type}}"))).
		WithPanel(graph(facts{
			title: "Connections", unit: "short", empty: "no ingest", width: half, height: high,
			description: "Connections of all pools: in use, idle, and the limit. If all are in use, operations wait for one.",
		},
			over("sum by (db_client_connection_state) (db_client_connection_count{@service, @environment})", "{{db_client_connection_state}}"),
			over("sum(db_client_connection_max{@service, @environment})", "limit"))).
		WithPanel(graph(facts{
			title: "Requests per commit", unit: "short", empty: "no requests", width: half, height: high,
			description: "Number of requests that share a commit. It grows with the load.",
		}, percentiles("throughline_writer_batch_size_bucket{@service, @environment}")...))
}

func kafka(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(graph(facts{
			title: "Sent", unit: "mps", empty: "nothing sent", width: third, height: high,
			description: "Records that the broker has acknowledged or rejected, by topic.",
		}, over("sum by (messaging_destination_name, error_type) (rate(messaging_client_sent_messages_total{@service, @environment}[$__rate_interval]))", "{{messaging_destination_name}} {{error_type}}"))).
		WithPanel(graph(facts{
			title: "Send duration", unit: "s", empty: "nothing sent", width: third, height: high,
			description: "95th percentile of the time until the broker's acknowledgement.",
		}, over("histogram_quantile(0.95, sum by (messaging_destination_name, le) (rate(messaging_client_operation_duration_seconds_bucket{@service, @environment}[$__rate_interval])))", "{{messaging_destination_name}}"))).
		WithPanel(graph(facts{
			title: "Consumed", unit: "mps", empty: "nothing consumed", width: third, height: high,
			description: "Fetched records, by topic.",
		}, over("sum by (messaging_destination_name) (rate(messaging_client_consumed_messages_total{@service, @environment}[$__rate_interval]))", "{{messaging_destination_name}}"))).
		WithPanel(graph(facts{
			title: "Processing time", unit: "s", empty: "nothing consumed", width: third, height: high,
			description: "95th percentile of the processing time of a record. In dispatch, it includes the call.",
		}, over("histogram_quantile(0.95, sum by (messaging_destination_name, le) (rate(messaging_process_duration_seconds_bucket{@service, @environment}[$__rate_interval])))", "{{messaging_destination_name}}"))).
		WithPanel(graph(facts{
			title: "Producer queue", unit: "short", empty: "no data from producers", width: third, height: high,
			description: "Records in librdkafka's queues that wait to be sent, by replica and client.",
		}, over("sum by (instance, messaging_client_id) (throughline_kafka_queue_messages{@service, @environment})", "{{instance}} {{messaging_client_id}}"))).
		WithPanel(graph(facts{
			title: "Round trip to brokers", unit: "s", empty: "no data from brokers", width: third, height: high,
			description: "Mean round-trip time to each broker, for the slowest client.",
		}, over("max by (messaging_kafka_broker_id) (throughline_kafka_broker_latency_seconds{@service, @environment})", "broker {{messaging_kafka_broker_id}}"))).
		WithPanel(stacked(facts{
			title: "Broker errors", unit: "ops", empty: "no errors", width: half, height: high,
			description: "Transmission errors and requests that timed out.",
		}, over("sum by (messaging_kafka_broker_id) (rate(throughline_kafka_broker_errors_total{@service, @environment}[$__rate_interval]))", "broker {{messaging_kafka_broker_id}}"))).
		WithPanel(stacked(facts{
			title: "Published by the sweeper", unit: "reqps", empty: "none", width: half, height: high,
			description: "Planned: retries and deferred deliveries that are due. Silent: deliveries without an outcome within ingest.redelivery_timeout.",
		}, over("sum by (throughline_cause) (rate(throughline_sweeper_published_total{@service, @environment}[$__rate_interval]))", "{{throughline_cause}}")))
}

func telemetry(board *dashboard.DashboardBuilder) {
	board.
		WithPanel(stacked(facts{
			title: "Dropped by services", unit: "short", empty: "none dropped", width: third, height: high,
			description: "Spans, log records and metric exports that did not reach the Collector, in the preceding 15 minutes.",
		}, over("sum by (job, throughline_signal, error_type) (throughline:telemetry_dropped:increase15m{@environment})", "{{job}} {{throughline_signal}} {{error_type}}"))).
		WithPanel(graph(facts{
			title: "Received by the Collector", unit: "cps", empty: "no Collector", width: third, height: high,
			description: "Items received per second, by signal.",
		},
			over("sum(rate(otelcol_receiver_accepted_spans[$__rate_interval]))", "spans"),
			over("sum(rate(otelcol_receiver_accepted_metric_points[$__rate_interval]))", "metric points"),
			over("sum(rate(otelcol_receiver_accepted_log_records[$__rate_interval]))", "log records"))).
		WithPanel(graph(facts{
			title: "Collector queues", unit: "percentunit", empty: "no Collector", width: third, height: high,
			description: "Fill level of each exporter's queue. If a queue is full, items are dropped.",
		}, over("max by (exporter) (otelcol_exporter_queue_size) / max by (exporter) (otelcol_exporter_queue_capacity)", "{{exporter}}")))
}
