// Command dashboards generates ../dashboards with Grafana's foundation SDK.
//
//	make dashboards
//
// Each other file defines one dashboard; panels.go defines the elements that they share.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/loki"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/tempo"
)

// The folder that Grafana reads, relative to this one.
const folder = "../dashboards"

// The dashboards, by file name.
var dashboards = map[string]func() *dashboard.DashboardBuilder{
	"pipeline.json":     pipeline,
	"destinations.json": destinations,
	"dead-letters.json": deadLetters,
	"services.json":     services,
	"request.json":      request,
}

func main() {
	for name, build := range dashboards {
		text, err := render(build())
		if err != nil {
			log.Fatalf("%s: %v", name, err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), text, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

// render returns a dashboard as JSON. It numbers the panels, so that links can address them, and assigns letters to
// their queries, because the columns of tables are named after them.
func render(builder *dashboard.DashboardBuilder) ([]byte, error) {
	built, err := builder.Build()
	if err != nil {
		return nil, err
	}
	for number, either := range built.Panels {
		id := uint32(number + 1)
		if either.RowPanel != nil {
			either.RowPanel.Id = id
			continue
		}
		either.Panel.Id = &id
		for index, query := range either.Panel.Targets {
			either.Panel.Targets[index] = lettered(query, string(rune('A'+index)))
		}
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	err = encoder.Encode(built)
	return text.Bytes(), err
}

func lettered(query variants.Dataquery, letter string) variants.Dataquery {
	switch query := query.(type) {
	case prometheus.Dataquery:
		query.RefId = &letter
		return query
	case loki.Dataquery:
		query.RefId = &letter
		return query
	case tempo.TempoQuery:
		query.RefId = &letter
		return query
	default:
		panic(fmt.Sprintf("no letter for a query of %T", query))
	}
}
