package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestTheCommittedDashboardsAreUpToDate(t *testing.T) {
	for name, build := range dashboards {
		made, err := render(build())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		committed, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(made, committed) {
			t.Errorf("%s is outdated or was edited by hand: run `make dashboards`", name)
		}
	}
}

func TestEveryCommittedDashboardIsGenerated(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if _, known := dashboards[filepath.Base(file)]; !known {
			t.Errorf("%s is not generated", file)
		}
	}
}

func TestEveryPanelHasATitleADescriptionAUnitAQueryAndATextForNoData(t *testing.T) {
	for name, build := range dashboards {
		built, err := build().Build()
		if err != nil {
			t.Fatal(err)
		}
		for _, either := range built.Panels {
			panel := either.Panel
			if panel == nil {
				continue
			}
			if panel.Title == nil || *panel.Title == "" || panel.Description == nil || *panel.Description == "" {
				t.Errorf("%s: a panel %v without a title or a description", name, panel.Title)
				continue
			}
			defaults := panel.FieldConfig.Defaults
			if defaults.NoValue == nil || *defaults.NoValue == "" {
				t.Errorf("%s: %q has no text for the case without data", name, *panel.Title)
			}
			if defaults.Unit == nil {
				t.Errorf("%s: %q has no unit", name, *panel.Title)
			}
			if len(panel.Targets) == 0 {
				t.Errorf("%s: %q has no query", name, *panel.Title)
			}
		}
	}
}
