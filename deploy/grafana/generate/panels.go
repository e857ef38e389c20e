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

// Colours that mean the same everywhere.
const (
	good    = "green"
	unknown = "text"
	mild    = "yellow"
	bad     = "orange"
	worst   = "red"
	waiting = "blue"
)

// The width of the grid, and the heights of panels on it.
const (
	whole = 24
	half  = 12
	third = 8

	low  = 4
	high = 8
	tall = 12
)

// words are what expressions are shortened by: the variables that each dashboard has, as matchers.
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

// source is the variable that says which data source of a type to ask.
func source(kind string) *dashboard.DatasourceVariableBuilder {
	return dashboard.NewDatasourceVariableBuilder(kind + "_datasource").
		Label(strings.ToUpper(kind[:1]) + kind[1:] + " data source").
		Type(kind).
		Hide(dashboard.VariableHideInControlsMenu)
}

func reference(kind string) common.DataSourceRef {
	return common.DataSourceRef{Type: cog.ToPtr(kind), Uid: cog.ToPtr("${" + kind + "_datasource}")}
}

// variable is one whose values are those of a label. All of them includes what has no such label.
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

// over asks Prometheus for a course of time.
func over(expression, legend string) *prometheus.DataqueryBuilder {
	return prometheus.NewDataqueryBuilder().
		Datasource(reference("prometheus")).
		Expr(words.Replace(expression)).
		LegendFormat(legend).
		Range()
}

// now asks Prometheus for how it is at the end of the range.
func now(expression, legend string) *prometheus.DataqueryBuilder {
	return prometheus.NewDataqueryBuilder().
		Datasource(reference("prometheus")).
		Expr(words.Replace(expression)).
		LegendFormat(legend).
		Instant()
}

// column is a query whose answer is a column of a table.
func column(expression string) *prometheus.DataqueryBuilder {
	return now(expression, "").Format(prometheus.PromQueryFormatTable)
}

// percentiles are three queries for how long something takes, of a histogram's buckets.
func percentiles(buckets string) []cog.Builder[variants.Dataquery] {
	var queries []cog.Builder[variants.Dataquery]
	for _, share := range []struct{ of, legend string }{
		{"0.5", "half within"}, {"0.95", "95 in 100 within"}, {"0.99", "99 in 100 within"},
	} {
		expression := fmt.Sprintf("histogram_quantile(%s, sum by (le) (rate(%s[$__rate_interval])))", share.of, buckets)
		queries = append(queries, over(expression, share.legend))
	}
	return queries
}

// fromTraces are the same of Tempo's span metrics: with exemplars, each a dot that leads to a trace.
func fromTraces(matchers string) *prometheus.DataqueryBuilder {
	expression := fmt.Sprintf("histogram_quantile(0.95, sum by (le) (rate(traces_spanmetrics_latency_bucket{%s}[$__rate_interval])))", matchers)
	return over(expression, "95 in 100 within").Exemplar(true)
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

// facts are what every panel says of itself.
type facts struct {
	title, description string
	// One of Grafana's units.
	unit string
	// What is shown if there is nothing to show, and so what that means.
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

// states shows what a number meant in the course of time.
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

// rows is a table. Its columns are named in the order in which they are shown; others are left out.
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

// What answers need before they are a table.
const (
	// The answers to several queries, merged by the labels that they share.
	merged = "merge"
	// Log lines, whose labels and fields become columns.
	spread = "extractFields"
)

var preparations = map[string]map[string]any{
	merged: {},
	spread: {"source": "labels", "format": "json"},
}

// name is a column of a table.
type name struct {
	// What it is called in the answer to its query, and what it is shown as.
	of, shown string
	// How its values are shown.
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

// --- how values look ------------------------------------------------------------------------------

// limits are the colours from certain values on; the first is that of all below the second.
func limits(first string, others ...any) []dashboard.Threshold {
	steps := []dashboard.Threshold{{Color: first}}
	for index := 0; index+1 < len(others); index += 2 {
		steps = append(steps, dashboard.Threshold{Value: cog.ToPtr(others[index].(float64)), Color: others[index+1].(string)})
	}
	return steps
}

// meaning is what a number stands for.
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

// linked makes a column's values lead somewhere.
func linked(title, url string) dashboard.DynamicConfigValue {
	return dashboard.DynamicConfigValue{Id: "links", Value: []map[string]any{{"title": title, "url": url}}}
}

// outcomes gives each outcome its colour, wherever a legend names it.
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
