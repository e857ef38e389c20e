package chart

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

func TestEveryContainerRunsTheProgramOfItsImage(t *testing.T) {
	programs := programs(t)
	forEach(t, func(t *testing.T, release *Release) {
		for _, pod := range release.Pods() {
			container := pod.Spec.Containers[0]
			image := regexp.MustCompile(`[:@].*`).ReplaceAllString(path.Base(container.Image), "")
			// The name of the build target, as in release.yml.
			program := programs[strings.TrimPrefix(image, "throughline-")]
			if command := commandOf(container); program == "" || command[0] != program {
				t.Errorf("%s runs %v, but %s contains the program %q", pod.Owner, command, image, program)
			}
		}
	})
}

// programs returns the program of each target of the Dockerfile.
func programs(t *testing.T) map[string]string {
	t.Helper()
	dockerfile, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{}
	for _, target := range strings.Split(string(dockerfile), "\nFROM base AS ")[1:] {
		name, _, _ := strings.Cut(target, "\n")
		programs[name] = found(t, `\nENTRYPOINT \["(.+)"\]`, target)[0][1]
		found(t, `\nCOPY --from=programs /`+programs[name]+` /usr/local/bin/\n`, target)
	}
	return programs
}

func TestEveryCommandIsValidForItsProgram(t *testing.T) {
	forEach(t, func(t *testing.T, release *Release) {
		for _, pod := range release.Pods() {
			command := commandOf(pod.Spec.Containers[0])
			if command[0] != "throughline" {
				if len(command) > 1 {
					t.Errorf("%s has unexpected arguments: %v", pod.Owner, command)
				}
				continue
			}
			if len(command) == 1 {
				t.Errorf("%s has no subcommand", pod.Owner)
			}
			// Invalid arguments before `--help` are still rejected.
			output, err := exec.Command(program(t), append(command[1:], "--help")...).CombinedOutput()
			if err != nil {
				t.Errorf("%s: %v: %v: %s", pod.Owner, command, err, output)
			}
		}
	})
}

// commandOf returns the complete command line of a container.
func commandOf(container core.Container) []string {
	return slices.Concat(container.Command, container.Args)
}

func TestEveryServiceListensOnThePortsOfItsContainer(t *testing.T) {
	// The names of ports, and the settings that contain their addresses.
	addresses := map[string][][3]string{
		"throughline-ingest":   {{"http", "http", "address"}, {"health", "http", "health_address"}},
		"throughline-dispatch": {{"http", "dispatch", "address"}},
	}
	forEach(t, func(t *testing.T, release *Release) {
		for _, pod := range release.Pods() {
			var wanted []string
			for _, of := range addresses[pod.Owner] {
				wanted = append(wanted, fmt.Sprintf("%s:%d", of[0], listensOn(t, release, pod, of[1], of[2])))
			}
			var named []string
			for _, port := range pod.Spec.Containers[0].Ports {
				named = append(named, fmt.Sprintf("%s:%d", port.Name, port.ContainerPort))
			}
			if !slices.Equal(named, wanted) {
				t.Errorf("%s listens on %v, but its container has the ports %v", pod.Owner, wanted, named)
			}
		}
	})
}

// listensOn returns the port of an address in a section of the effective configuration.
func listensOn(t *testing.T, release *Release, pod Pod, section, key string) uint16 {
	t.Helper()
	shown, err := run(t, release, pod, "config", "show")
	if err != nil {
		t.Fatalf("%s: %v: %s", pod.Owner, err, shown)
	}
	effective := map[string]any{}
	if err := yaml.Unmarshal([]byte(shown), &effective); err != nil {
		t.Fatal(err)
	}
	address, err := netip.ParseAddrPort(effective[section].(map[string]any)[key].(string))
	if err != nil {
		t.Fatal(err)
	}
	if !address.Addr().IsUnspecified() {
		t.Errorf("%s is unreachable at %s", pod.Owner, address)
	}
	return address.Port()
}

func TestEveryProbeUsesTheRightPath(t *testing.T) {
	// A service that is not ready must not be restarted. values.yaml explains why ingest is ready without PostgreSQL.
	const health, ready = "/healthz", "/readyz"
	paths := map[string][3]string{
		"throughline-ingest":   {health, health, health},
		"throughline-dispatch": {health, health, ready},
	}
	forEach(t, func(t *testing.T, release *Release) {
		for _, deployment := range All[*apps.Deployment](release) {
			container := deployment.Spec.Template.Spec.Containers[0]
			for at, probe := range []*core.Probe{container.StartupProbe, container.LivenessProbe, container.ReadinessProbe} {
				if probe == nil || probe.HTTPGet == nil {
					t.Errorf("%s lacks an HTTP probe: %+v", deployment.Name, probe)
				} else if path := paths[deployment.Name][at]; probe.HTTPGet.Path != path {
					t.Errorf("%s is probed at %s instead of %s", deployment.Name, probe.HTTPGet.Path, path)
				} else if port := probe.HTTPGet.Port.StrVal; deployment.Name == "throughline-ingest" && port != "health" {
					t.Errorf("%s is probed at %s, where its clients can delay the probe", deployment.Name, port)
				}
			}
		}
	})
}

func TestEveryPortNameExistsInTheContainer(t *testing.T) {
	forEach(t, func(t *testing.T, release *Release) {
		names := map[string][]intstr.IntOrString{}
		for _, service := range All[*core.Service](release) {
			for _, port := range service.Spec.Ports {
				names[service.Name] = append(names[service.Name], port.TargetPort)
			}
		}
		for _, network := range All[*networking.NetworkPolicy](release) {
			for _, rule := range network.Spec.Ingress {
				for _, port := range rule.Ports {
					names[network.Name] = append(names[network.Name], *port.Port)
				}
			}
		}
		for _, deployment := range All[*apps.Deployment](release) {
			container := deployment.Spec.Template.Spec.Containers[0]
			for _, probe := range []*core.Probe{container.StartupProbe, container.LivenessProbe, container.ReadinessProbe} {
				if probe != nil && probe.HTTPGet != nil {
					names[deployment.Name] = append(names[deployment.Name], probe.HTTPGet.Port)
				}
			}
			for _, name := range names[deployment.Name] {
				if !slices.ContainsFunc(container.Ports, func(port core.ContainerPort) bool {
					return name.Type == intstr.String && port.Name == name.StrVal
				}) {
					t.Errorf("%s has no port named %q", deployment.Name, name.String())
				}
			}
		}
	})
}
