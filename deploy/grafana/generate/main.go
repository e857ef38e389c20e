// Command dashboards makes the dashboards of ../dashboards, with Grafana's foundation SDK.
//
//	make dashboards
//
// Each file beside this one is one dashboard; panels.go has what they are made of.
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

// The folder that Grafana reads, from here.
const folder = "../dashboards"

// By the name of their files.
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

// render writes a dashboard as Grafana reads it: its panels are numbered, so that one can be linked to, and their
// queries have letters, by which the columns of a table are known.
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
