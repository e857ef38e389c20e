package main

import (
	"fmt"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/bargauge"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/logs"
	"github.com/grafana/grafana-foundation-sdk/go/loki"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/statetimeline"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/tempo"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// Colours with one meaning in all panels.
const (
	good    = "green"
	unknown = "text"
	mild    = "yellow"
	bad     = "orange"
	worst   = "red"
	waiting = "blue"
)

// Widths and heights of panels on Grafana's grid.
const (
	whole = 24
	half  = 12
	third = 8

	low  = 4
	high = 8
	tall = 12
)

// words are abbreviations in expressions: each stands for matchers of the dashboard's variables.
var words = strings.NewReplacer(
	"@environment", `deployment_environment_name=~"$environment"`,
	"@route", `throughline_route=~"$route"`,
	"@destination", `throughline_destination=~"$destination"`,
	"@service", `job=~"$service", instance=~"$instance"`,
)

// --- dashboards -----------------------------------------------------------------------------------

func newDashboard(uid, title, description string) *dashboard.DashboardBuilder {
	return dashboard.NewDashboardBuilder(title).
		Uid("throughline-"+uid).
		Description(description).
		Tags([]string{"throughline"}).
		Readonly().
		Refresh("30s").
		Time("now-1h", "now").
		Timezone("browser").
		Tooltip(dashboard.DashboardCursorSyncCrosshair).
		Link(dashboard.NewDashboardLinkBuilder("Throughline").
			Type(dashboard.DashboardLinkTypeDashboards).
			Tags([]string{"throughline"}).
			AsDropdown(false).
			IncludeVars(true).
			KeepTime(true)).
		WithVariable(source("prometheus")).
		WithVariable(variable("environment", "Environment", `label_values(target_info{service_namespace="throughline"}, deployment_environment_name)`))
}

// source is the variable that selects the data source of a type.
func source(kind string) *dashboard.DatasourceVariableBuilder {
	return dashboard.NewDatasourceVariableBuilder(kind + "_datasource").
		Label(strings.ToUpper(kind[:1]) + kind[1:] + " data source").
		Type(kind).
		Hide(dashboard.VariableHideInControlsMenu)
}

func reference(kind string) common.DataSourceRef {
	return common.DataSourceRef{Type: cog.ToPtr(kind), Uid: cog.ToPtr("${" + kind + "_datasource}")}
}

// variable is a variable whose values are those of a label. `All` also matches series without this label.
func variable(name, label, query string) *dashboard.QueryVariableBuilder {
	all := dashboard.StringOrArrayOfString{String: cog.ToPtr("$__all")}
	text := dashboard.StringOrArrayOfString{String: cog.ToPtr("All")}
	return dashboard.NewQueryVariableBuilder(name).
		Label(label).
		Datasource(reference("prometheus")).
		Query(dashboard.StringOrMap{String: cog.ToPtr(words.Replace(query))}).
		Refresh(dashboard.VariableRefreshOnTimeRangeChanged).
		Sort(dashboard.VariableSortAlphabeticalAsc).
		Multi(true).
		IncludeAll(true).
		AllValue(".*").
		Current(dashboard.VariableOption{Selected: cog.ToPtr(true), Text: text, Value: all})
}

func routes() *dashboard.QueryVariableBuilder {
	return variable("route", "Route", "label_values(throughline_requests_accepted_total{@environment}, throughline_route)")
}

func destinationsOf() *dashboard.QueryVariableBuilder {
	return variable("destination", "Destination", "label_values(throughline_breaker_state{@environment}, throughline_destination)")
}

func row(title string) *dashboard.RowBuilder { return dashboard.NewRowBuilder(title) }

// --- queries --------------------------------------------------------------------------------------

// over is a Prometheus query over the time range.
func over(expression, legend string) *prometheus.DataqueryBuilder {
	return prometheus.NewDataqueryBuilder().
		Datasource(reference("prometheus")).
		Expr(words.Replace(expression)).
		LegendFormat(legend).
		Range()
}

// now is a Prometheus query at the end of the time range.
func now(expression, legend string) *prometheus.DataqueryBuilder {
	return prometheus.NewDataqueryBuilder().
		Datasource(reference("prometheus")).
		Expr(words.Replace(expression)).
		LegendFormat(legend).
		Instant()
}

// column is a query whose result is a column of a table.
func column(expression string) *prometheus.DataqueryBuilder {
	return now(expression, "").Format(prometheus.PromQueryFormatTable)
}

// percentiles returns three queries for the percentiles of a duration, from the buckets of its histogram.
func percentiles(buckets string) []cog.Builder[variants.Dataquery] {
	var queries []cog.Builder[variants.Dataquery]
	for _, share := range []struct{ of, legend string }{
		{"0.5", "p50"}, {"0.95", "p95"}, {"0.99", "p99"},
	} {
		expression := fmt.Sprintf("histogram_quantile(%s, sum by (le) (rate(%s[$__rate_interval])))", share.of, buckets)
		queries = append(queries, over(expression, share.legend))
	}
	return queries
}

// fromTraces is the 95th percentile from Tempo's span metrics, with exemplars: dots that link to traces.
func fromTraces(matchers string) *prometheus.DataqueryBuilder {
	expression := fmt.Sprintf("histogram_quantile(0.95, sum by (le) (rate(traces_spanmetrics_latency_bucket{%s}[$__rate_interval])))", matchers)
	return over(expression, "p95").Exemplar(true)
}

func logLines(expression string) *loki.DataqueryBuilder {
	return loki.NewDataqueryBuilder().Datasource(reference("loki")).Expr(expression).QueryType("range").MaxLines(1000)
}

func traces(query string) *tempo.TempoQueryBuilder {
	return tempo.NewTempoQueryBuilder().
		Datasource(reference("tempo")).
		QueryType("traceql").
		Query(query).
		TableType(tempo.SearchTableTypeTraces).
		Limit(20)
}

// --- panels ---------------------------------------------------------------------------------------

// facts are the properties that every panel must have.
type facts struct {
	title, description string
	// One of Grafana's units.
	unit string
	// The text to show without data, which also gives the meaning of that.
	empty string
	// The width and height on the grid.
	width, height uint32
}

func graph(about facts, queries ...cog.Builder[variants.Dataquery]) *timeseries.PanelBuilder {
	panel := timeseries.NewPanelBuilder().
		Title(about.title).Description(about.description).
		Unit(about.unit).NoValue(about.empty).
		Span(about.width).Height(about.height).
		Datasource(reference("prometheus")).
		Min(0).
		LineWidth(1).FillOpacity(10).
		ShowPoints(common.VisibilityModeNever).
		Legend(common.NewVizLegendOptionsBuilder().
			ShowLegend(true).
			DisplayMode(common.LegendDisplayModeList).
			Placement(common.LegendPlacementBottom)).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending))
	for _, query := range queries {
		panel.WithTarget(query)
	}
	return panel
}

// stacked is a graph whose areas add up.
func stacked(about facts, queries ...cog.Builder[variants.Dataquery]) *timeseries.PanelBuilder {
	return graph(about, queries...).
		FillOpacity(40).
		Stacking(common.NewStackingConfigBuilder().Mode(common.StackingModeNormal))
}

func number(about facts, limits []dashboard.Threshold, query cog.Builder[variants.Dataquery]) *stat.PanelBuilder {
	return stat.NewPanelBuilder().
		Title(about.title).Description(about.description).
		Unit(about.unit).NoValue(about.empty).
		Span(about.width).Height(about.height).
		Datasource(reference("prometheus")).
		Thresholds(dashboard.NewThresholdsConfigBuilder().Mode(dashboard.ThresholdsModeAbsolute).Steps(limits)).
		ColorMode(common.BigValueColorModeBackground).
		GraphMode(common.BigValueGraphModeArea).
		ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"})).
		WithTarget(query)
}

func bars(about facts, limits []dashboard.Threshold, queries ...cog.Builder[variants.Dataquery]) *bargauge.PanelBuilder {
	panel := bargauge.NewPanelBuilder().
		Title(about.title).Description(about.description).
		Unit(about.unit).NoValue(about.empty).
		Span(about.width).Height(about.height).
		Datasource(reference("prometheus")).
		Min(0).
		Thresholds(dashboard.NewThresholdsConfigBuilder().Mode(dashboard.ThresholdsModeAbsolute).Steps(limits)).
		Orientation(common.VizOrientationHorizontal).
		DisplayMode(common.BarGaugeDisplayModeBasic).
		ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"}))
	for _, query := range queries {
		panel.WithTarget(query)
	}
	return panel
}

// states shows the states that a number stands for over time.
func states(about facts, meanings []dashboard.ValueMapping, query cog.Builder[variants.Dataquery]) *statetimeline.PanelBuilder {
	return statetimeline.NewPanelBuilder().
		Title(about.title).Description(about.description).
		Unit(about.unit).NoValue(about.empty).
		Span(about.width).Height(about.height).
		Datasource(reference("prometheus")).
		Mappings(meanings).
		LineWidth(0).FillOpacity(80).
		Legend(common.NewVizLegendOptionsBuilder().ShowLegend(false)).
		WithTarget(query)
}

// rows is a table with the named columns, in the given order.
func rows(about facts, kind string, prepare string, names []name, queries ...cog.Builder[variants.Dataquery]) *table.PanelBuilder {
	indexByName, renameByName, includeByName := map[string]int{}, map[string]string{}, map[string]bool{}
	for index, name := range names {
		indexByName[name.of], renameByName[name.of], includeByName[name.of] = index, name.shown, true
	}
	panel := table.NewPanelBuilder().
		Title(about.title).Description(about.description).
		Unit(about.unit).NoValue(about.empty).
		Span(about.width).Height(about.height).
		Datasource(reference(kind)).
		WithTransformation(dashboard.DataTransformerConfig{Id: prepare, Options: preparations[prepare]}).
		WithTransformation(dashboard.DataTransformerConfig{Id: "organize", Options: map[string]any{
			"indexByName": indexByName, "renameByName": renameByName, "includeByName": includeByName,
		}})
	for _, query := range queries {
		panel.WithTarget(query)
	}
	for _, name := range names {
		if len(name.properties) > 0 {
			panel.OverrideByName(name.shown, name.properties)
		}
	}
	return panel
}

// Transformations of query results into a table.
const (
	// Merges the results of several queries by their common labels.
	merged = "merge"
	// Converts the labels and fields of log lines to columns.
	spread = "extractFields"
)

var preparations = map[string]map[string]any{
	merged: {},
	spread: {"source": "labels", "format": "json"},
}

// name is a column of a table.
type name struct {
	// Its name in the query result, and the name to show.
	of, shown string
	// The display properties of its values.
	properties []dashboard.DynamicConfigValue
}

func lines(about facts, query cog.Builder[variants.Dataquery]) *logs.PanelBuilder {
	return logs.NewPanelBuilder().
		Title(about.title).Description(about.description).
		Unit(about.unit).NoValue(about.empty).
		Span(about.width).Height(about.height).
		Datasource(reference("loki")).
		ShowTime(true).
		WrapLogMessage(true).
		EnableLogDetails(true).
		SortOrder(common.LogsSortOrderAscending).
		WithTarget(query)
}

// --- display of values ----------------------------------------------------------------------------

// limits are thresholds: a first colour, then pairs of a value and the colour from that value on.
func limits(first string, others ...any) []dashboard.Threshold {
	steps := []dashboard.Threshold{{Color: first}}
	for index := 0; index+1 < len(others); index += 2 {
		steps = append(steps, dashboard.Threshold{Value: cog.ToPtr(others[index].(float64)), Color: others[index+1].(string)})
	}
	return steps
}

// meaning maps a number to its text and colour.
type meaning struct {
	value, text, colour string
}

func meanings(all ...meaning) []dashboard.ValueMapping {
	options := map[string]dashboard.ValueMappingResult{}
	for index, one := range all {
		options[one.value] = dashboard.ValueMappingResult{
			Text: cog.ToPtr(one.text), Color: cog.ToPtr(one.colour), Index: cog.ToPtr(int32(index)),
		}
	}
	return []dashboard.ValueMapping{{ValueMap: &dashboard.ValueMap{Type: dashboard.MappingTypeValueToText, Options: options}}}
}

func breakerStates() []dashboard.ValueMapping {
	return meanings(meaning{"0", "closed", good}, meaning{"1", "probing", mild}, meaning{"2", "open", worst})
}

func publisherModes() []dashboard.ValueMapping {
	return meanings(meaning{"0", "memory", good}, meaning{"1", "table", mild})
}

func in(unit string) dashboard.DynamicConfigValue {
	return dashboard.DynamicConfigValue{Id: "unit", Value: unit}
}

func decimals(digits int) dashboard.DynamicConfigValue {
	return dashboard.DynamicConfigValue{Id: "decimals", Value: digits}
}

func coloured(steps []dashboard.Threshold) []dashboard.DynamicConfigValue {
	return []dashboard.DynamicConfigValue{
		{Id: "thresholds", Value: map[string]any{"mode": "absolute", "steps": steps}},
		{Id: "custom.cellOptions", Value: map[string]any{"type": "color-text"}},
	}
}

func mapped(mappings []dashboard.ValueMapping) []dashboard.DynamicConfigValue {
	return []dashboard.DynamicConfigValue{
		{Id: "mappings", Value: mappings},
		{Id: "custom.cellOptions", Value: map[string]any{"type": "color-text"}},
	}
}

// linked adds a link to the values of a column.
func linked(title, url string) dashboard.DynamicConfigValue {
	return dashboard.DynamicConfigValue{Id: "links", Value: []map[string]any{{"title": title, "url": url}}}
}

// outcomes gives each outcome in the legend its colour.
func outcomes(panel *timeseries.PanelBuilder) *timeseries.PanelBuilder {
	for _, outcome := range []struct{ name, colour string }{
		{"delivered", good}, {"retry", mild}, {"deferred", waiting}, {"dead", worst}, {"cancelled", unknown},
	} {
		panel.OverrideByName(outcome.name, []dashboard.DynamicConfigValue{
			{Id: "color", Value: map[string]any{"mode": "fixed", "fixedColor": outcome.colour}},
		})
	}
	return panel
}
