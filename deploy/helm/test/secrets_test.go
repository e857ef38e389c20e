package chart

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func TestKnownPasswordsAreNotAllowedInTheConfigMap(t *testing.T) {
	var places []string
	for _, property := range namesIn(t, "PASSWORDS", "kafka/src/settings.rs") {
		property = strings.ReplaceAll(property, ".", `\.`)
		places = append(places, "config.kafka.properties."+property, "config.destinations.three.properties."+property)
	}
	for _, part := range namesIn(t, "OF_CREDENTIALS", "destination/src/http/settings.rs") {
		for _, header := range []string{part, "X-" + strings.ToUpper(part) + "-1", "my" + strings.ToUpper(part[:1]) + part[1:]} {
			places = append(places, "config.destinations.three.headers."+header)
		}
	}
	for _, place := range places {
		path := strings.ReplaceAll(strings.NewReplacer(`\.`, "\n", ".", "/").Replace(place), "\n", ".")
		if _, err := Render("--set", place+"=geheim"); err == nil || !strings.Contains(err.Error(), "/"+path) {
			t.Errorf("%s is accepted in plain text: %v", place, err)
		}
		for _, reference := range []string{".env=NAME", ".file=/run/secrets/a/b"} {
			render(t, "--set", place+reference)
		}
	}
}

// namesIn returns the strings of a list in a source file.
func namesIn(t *testing.T, list, file string) []string {
	t.Helper()
	source, err := os.ReadFile("../../../libs/" + file)
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?s)\nconst ` + list + `: \[&str; (\d+)\] =\s*\[(.*?)\];`).FindSubmatch(source)
	if declared == nil {
		t.Fatalf("%s not found", list)
	}
	var names []string
	for _, name := range found(t, `"([^"]+)"`, string(declared[2])) {
		names = append(names, name[1])
	}
	if said, _ := strconv.Atoi(string(declared[1])); said != len(names) {
		t.Fatalf("%s has %d names, but these were read: %v", list, said, names)
	}
	return names
}

func TestOtherValuesAreAllowedInPlainText(t *testing.T) {
	for _, values := range []string{
		"config.kafka.properties.security\\.protocol=sasl_ssl",
		"config.kafka.properties.sasl\\.username=me",
		"config.destinations.three.headers.language=en",
		"config.destinations.three.oauth2.parameters.resource=https://api.example.com",
	} {
		render(t, "--set", values)
	}
}
