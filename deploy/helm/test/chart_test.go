package chart

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	disruption "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

const hook, hookWeight = "helm.sh/hook", "helm.sh/hook-weight"

// forEach renders the chart with each of its values files.
func forEach(t *testing.T, check func(t *testing.T, release *Release)) {
	t.Helper()
	files, err := ValuesFiles()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { check(t, render(t, "--values", file)) })
	}
}

func render(t *testing.T, arguments ...string) *Release {
	t.Helper()
	release, err := Render(arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return release
}

func get[T meta.Object](t *testing.T, release *Release, key string) T {
	t.Helper()
	object, err := Get[T](release, key)
	if err != nil {
		t.Fatal(err)
	}
	return object
}

func TestEveryPodMeetsTheRestrictedPodSecurityStandard(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	forEach(t, func(t *testing.T, release *Release) {
		for _, pod := range release.Pods() {
			results := evaluator.EvaluatePod(restricted, &pod.Meta, &pod.Spec)
			if aggregate := policy.AggregateCheckResults(results); !aggregate.Allowed {
				t.Errorf("%s: %s", pod.Owner, aggregate.ForbiddenDetail())
			}
		}
	})
}

func TestEveryContainerIsRestrictedAndHasResources(t *testing.T) {
	forEach(t, func(t *testing.T, release *Release) {
		for _, pod := range release.Pods() {
			if token := pod.Spec.AutomountServiceAccountToken; token == nil || *token {
				t.Errorf("%s mounts a service account token", pod.Owner)
			}
			for _, container := range pod.Spec.Containers {
				security := container.SecurityContext
				if security == nil || security.ReadOnlyRootFilesystem == nil || !*security.ReadOnlyRootFilesystem {
					t.Errorf("%s has a writable root file system", pod.Owner)
				}
				resources := container.Resources
				if resources.Requests.Cpu().IsZero() || resources.Requests.Memory().IsZero() || resources.Limits.Memory().IsZero() {
					t.Errorf("%s lacks a CPU request, a memory request or a memory limit", pod.Owner)
				}
			}
		}
	})
}

func TestTheGracePeriodOfAPodExceedsItsShutdownDeadline(t *testing.T) {
	forEach(t, func(t *testing.T, release *Release) {
		for _, name := range []string{"throughline-ingest", "throughline-dispatch"} {
			deployment := get[*apps.Deployment](t, release, "Deployment/"+name)
			pod := Pod{Owner: name, Spec: deployment.Spec.Template.Spec}
			deadline, err := time.ParseDuration(configuration(t, release, pod)["shutdown_deadline"].(string))
			if err != nil {
				t.Fatal(err)
			}
			if lifecycle := pod.Spec.Containers[0].Lifecycle; lifecycle != nil {
				deadline += time.Duration(lifecycle.PreStop.Sleep.Seconds) * time.Second
			}
			// Aborted tasks get 2 s, and the last telemetry export 3 s.
			deadline += 5 * time.Second
			if grace := time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second; grace < deadline {
				t.Errorf("%s is killed after %s, but its shutdown may take %s", name, grace, deadline)
			}
		}
	})
}

func TestIngestReceivesSigtermOnlyAfterItHasLeftTheEndpoints(t *testing.T) {
	ingest := get[*apps.Deployment](t, render(t), "Deployment/throughline-ingest")
	lifecycle := ingest.Spec.Template.Spec.Containers[0].Lifecycle
	if lifecycle == nil || lifecycle.PreStop.Sleep.Seconds < 5 {
		t.Errorf("there is no preStop sleep: %+v", lifecycle)
	}
}

// configuration returns throughline.yaml as a pod reads it.
func configuration(t *testing.T, release *Release, pod Pod) map[string]any {
	t.Helper()
	files, err := release.ConfigMap(pod)
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]any{}
	if err := yaml.Unmarshal([]byte(files["throughline.yaml"]), &settings); err != nil {
		t.Fatal(err)
	}
	return settings
}

func TestTheConfigurationIsValidInEveryPod(t *testing.T) {
	forEach(t, func(t *testing.T, release *Release) {
		for _, pod := range release.Pods() {
			t.Run(pod.Owner, func(t *testing.T) {
				output, err := check(t, release, pod)
				if err != nil {
					t.Errorf("%v: %s", err, output)
				}
			})
		}
	})
}

func TestTheExampleInTheReadmeIsValid(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(folder, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	example := regexp.MustCompile("(?s)```yaml\n(# values.yaml\n.*?)```").FindSubmatch(readme)
	if example == nil {
		t.Fatal("not found")
	}
	values := filepath.Join(t.TempDir(), "values.yaml")
	write(t, values, string(example[1]))
	release := render(t, "--values", values)
	for _, pod := range release.Pods() {
		if output, err := check(t, release, pod); err != nil {
			t.Errorf("%s: %v: %s", pod.Owner, err, output)
		}
	}
}

func TestAnInvalidConfigurationIsDetected(t *testing.T) {
	release := render(t, "--set", "config.destinations.three.timeuot=1s")
	for _, pod := range release.Pods() {
		output, err := check(t, release, pod)
		if err == nil || !strings.Contains(output, "destinations.three.timeuot") {
			t.Errorf("%s: %v: %s", pod.Owner, err, output)
		}
	}
}

func TestPostingRequiresAKeyUnlessInsecureIsSet(t *testing.T) {
	for values, isSound := range map[string]bool{
		"config.clients.default=null":                      false,
		"config.clients.default=null,config.insecure=true": true,
	} {
		release := render(t, "--set", values)
		for _, pod := range release.Pods() {
			output, err := check(t, release, pod)
			if isSound != (err == nil) || isSound == strings.Contains(output, "clients: is missing") {
				t.Errorf("%s: %s: %v: %s", values, pod.Owner, err, output)
			}
		}
	}
}

func check(t *testing.T, release *Release, pod Pod) (string, error) {
	t.Helper()
	return run(t, release, pod, "config", "check")
}

// run runs the command throughline with the files and variables that a pod has.
func run(t *testing.T, release *Release, pod Pod, arguments ...string) (string, error) {
	t.Helper()
	files, err := release.ConfigMap(pod)
	if err != nil {
		t.Fatal(err)
	}
	container, mounts := pod.Spec.Containers[0], t.TempDir()
	for name, content := range files {
		write(t, filepath.Join(mounts, name), strings.ReplaceAll(content, "/run/secrets", mounts))
	}
	for _, path := range regexp.MustCompile(`/run/secrets/\S+`).FindAllString(files["throughline.yaml"], -1) {
		if slices.ContainsFunc(container.VolumeMounts, func(mount core.VolumeMount) bool {
			return mount.MountPath == filepath.Dir(path)
		}) {
			write(t, filepath.Join(mounts, strings.TrimPrefix(path, "/run/secrets")), secret(path))
		}
	}
	command := exec.Command(program(t), arguments...)
	command.Dir = mounts
	for _, variable := range container.Env {
		value := variable.Value
		if variable.ValueFrom != nil {
			value = secret(variable.Name)
		}
		if variable.Name == "THROUGHLINE_CONFIG" {
			value = filepath.Join(mounts, filepath.Base(value))
		}
		command.Env = append(command.Env, variable.Name+"="+value)
	}
	output, err := command.CombinedOutput()
	return string(output), err
}

// secret returns a distinct value that is long enough for a client's key.
func secret(name string) string {
	return "0123456789abcdef" + name
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// program returns the path of the built command throughline.
func program(t *testing.T) string {
	t.Helper()
	path := os.Getenv("THROUGHLINE")
	if path == "" {
		path = "../../../target/debug/throughline"
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAChangedConfigurationRollsBothServices(t *testing.T) {
	before, after := render(t), render(t, "--set", "config.destinations.three.timeout=3s")
	same := render(t, "--set", "ingest.service.port=81")
	for _, name := range []string{"Deployment/throughline-ingest", "Deployment/throughline-dispatch"} {
		checksum := func(release *Release) string {
			template := get[*apps.Deployment](t, release, name).Spec.Template
			return template.Annotations["checksum/config"]
		}
		if checksum(before) == "" || checksum(before) == checksum(after) {
			t.Errorf("%s does not roll", name)
		}
		if checksum(before) != checksum(same) {
			t.Errorf("%s rolls without a change", name)
		}
	}
}

func TestOnlyPodsThatUseTheDatabaseGetItsPassword(t *testing.T) {
	forEach(t, func(t *testing.T, release *Release) {
		for _, pod := range release.Pods() {
			told := slices.ContainsFunc(pod.Spec.Containers[0].Env, func(variable core.EnvVar) bool {
				return variable.Name == "PGPASSWORD" || variable.Name == "THROUGHLINE_DATABASE__URL"
			})
			if needs := pod.Owner != "throughline-dispatch"; told != needs {
				t.Errorf("%s gets the database settings: %t", pod.Owner, told)
			}
		}
	})
}

func TestEveryPodHasTheSigningKey(t *testing.T) {
	changing := render(t, "--set", "signingKey.name=of-records,signingKey.key=new,signingKey.acceptedKey=old")
	for release, expected := range map[*Release]map[string]string{
		render(t): {"THROUGHLINE_KAFKA__SIGNING_KEY": "throughline-signing-key/key"},
		changing:  {"THROUGHLINE_KAFKA__SIGNING_KEY": "of-records/new", "THROUGHLINE_KAFKA__ACCEPTED_KEY": "of-records/old"},
	} {
		for _, pod := range release.Pods() {
			found := map[string]string{}
			for _, variable := range pod.Spec.Containers[0].Env {
				if strings.HasPrefix(variable.Name, "THROUGHLINE_KAFKA__") {
					key := variable.ValueFrom.SecretKeyRef
					found[variable.Name] = key.Name + "/" + key.Key
				}
			}
			if !maps.Equal(found, expected) {
				t.Errorf("%s has %v", pod.Owner, found)
			}
		}
	}
}

func TestEveryPodMayConnectOnlyToItsDependencies(t *testing.T) {
	release := render(t, "--set", "telemetry.endpoint=http://collector:4318")
	for name, ports := range map[string][]int32{
		"throughline-ingest":   {53, 4318, 5432, 9092},
		"throughline-dispatch": {53, 443, 4318, 9092},
		"throughline-migrate":  {53, 5432},
		"throughline-purge":    {53, 5432},
	} {
		found := get[*networking.NetworkPolicy](t, release, "NetworkPolicy/"+name)
		if found := open(t, found); !slices.Equal(found, ports) {
			t.Errorf("%s may connect to %v", name, found)
		}
		if letsIn := len(found.Spec.Ingress) > 0; letsIn != (name == "throughline-ingest") {
			t.Errorf("%s allows incoming connections: %t", name, letsIn)
		}
		if !slices.Contains(found.Spec.PolicyTypes, networking.PolicyTypeIngress) ||
			!slices.Contains(found.Spec.PolicyTypes, networking.PolicyTypeEgress) {
			t.Errorf("%s does not restrict both directions: %v", name, found.Spec.PolicyTypes)
		}
	}
}

func TestAPolicyAllowsConnectionsToTheConfiguredAddresses(t *testing.T) {
	const token = "config.destinations.three.oauth2.token_url="
	for values, ports := range map[string][2][]int32{
		"config.kafka.bootstrap_servers=k":                             {{53, 5432, 9092}, {53, 443, 9092}},
		"config.kafka.bootstrap_servers=k:9093":                        {{53, 5432, 9093}, {53, 443, 9093}},
		"config.kafka.bootstrap_servers=k:9093\\, SSL://[::1]:9094\\,": {{53, 5432, 9093, 9094}, {53, 443, 9093, 9094}},
		"networkPolicy.kafka.ports[0]=9095":                            {{53, 5432, 9092, 9095}, {53, 443, 9092, 9095}},
		"config.destinations.three.url=http://third":                   {{53, 5432, 9092}, {53, 80, 9092}},
		"config.destinations.three.url=HTTP://third:8080/a:1":          {{53, 5432, 9092}, {53, 8080, 9092}},
		"config.destinations.three.url=https://third?to=a:1":           {{53, 5432, 9092}, {53, 443, 9092}},
		"config.destinations.other.url=https://other:8443/a":           {{53, 5432, 9092}, {53, 443, 8443, 9092}},
		token + "http://third:81/token":                                {{53, 5432, 9092}, {53, 81, 443, 9092}},
		"config.destinations.three=null":                               {{53, 5432, 9092}, {53, 9092}},
		"config.destinations.other=null":                               {{53, 5432, 9092}, {53, 443, 9092}},
		"networkPolicy.thirdParties.ports[0]=8443":                     {{53, 5432, 9092}, {53, 443, 8443, 9092}},
		"telemetry.endpoint=https://collector":                         {{53, 443, 5432, 9092}, {53, 443, 9092}},
		"telemetry.endpoint=http://collector:4000":                     {{53, 4000, 5432, 9092}, {53, 443, 4000, 9092}},
		"telemetry.endpoint=http://c:4318,telemetry.variables.OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=logs:4000": {
			{53, 4000, 4318, 5432, 9092}, {53, 443, 4000, 4318, 9092},
		},
		"telemetry.endpoint=http://c:4318,networkPolicy.collector.ports[0]=14318": {
			{53, 4318, 5432, 9092, 14318}, {53, 443, 4318, 9092, 14318},
		},
	} {
		release := render(t, "--set", values)
		for at, name := range []string{"throughline-ingest", "throughline-dispatch"} {
			network := get[*networking.NetworkPolicy](t, release, "NetworkPolicy/"+name)
			if found := open(t, network); !slices.Equal(found, ports[at]) {
				t.Errorf("%s: %s may connect to %v", values, name, found)
			}
		}
	}
}

// open returns the TCP ports that a policy allows, and checks that UDP is allowed only for name servers.
func open(t *testing.T, network *networking.NetworkPolicy) []int32 {
	t.Helper()
	ports, byUDP := map[int32]bool{}, []int32{}
	for _, rule := range network.Spec.Egress {
		if len(rule.Ports) == 0 {
			t.Errorf("%s allows all ports of %v", network.Name, rule.To)
		}
		for _, port := range rule.Ports {
			if *port.Protocol == core.ProtocolUDP {
				byUDP = append(byUDP, port.Port.IntVal)
			} else {
				ports[port.Port.IntVal] = true
			}
		}
	}
	if !slices.Equal(byUDP, []int32{53}) {
		t.Errorf("%s allows UDP to %v", network.Name, byUDP)
	}
	return slices.Sorted(maps.Keys(ports))
}

func TestEverySelectorMatchesThePodsOfOneComponent(t *testing.T) {
	forEach(t, func(t *testing.T, release *Release) {
		selectors := map[string]map[string]string{}
		for _, deployment := range All[*apps.Deployment](release) {
			selectors["Deployment/"+deployment.Name] = deployment.Spec.Selector.MatchLabels
			for _, constraint := range deployment.Spec.Template.Spec.TopologySpreadConstraints {
				selectors[constraint.TopologyKey+"/"+deployment.Name] = constraint.LabelSelector.MatchLabels
			}
		}
		for _, service := range All[*core.Service](release) {
			selectors["Service/"+service.Name] = service.Spec.Selector
		}
		for _, budget := range All[*disruption.PodDisruptionBudget](release) {
			selectors["PodDisruptionBudget/"+budget.Name] = budget.Spec.Selector.MatchLabels
		}
		for _, network := range All[*networking.NetworkPolicy](release) {
			selectors["NetworkPolicy/"+network.Name] = network.Spec.PodSelector.MatchLabels
		}
		for whose, selector := range selectors {
			var found []string
			for _, pod := range release.Pods() {
				if labels.SelectorFromSet(selector).Matches(labels.Set(pod.Meta.Labels)) {
					found = append(found, pod.Owner)
				}
			}
			if part := whose[strings.LastIndex(whose, "/")+1:]; len(found) != 1 || found[0] != part {
				t.Errorf("%s selects the pods of %v", whose, found)
			}
		}
	})
}

func TestADeploymentWithAnAutoscalerSetsNoReplicas(t *testing.T) {
	forEach(t, func(t *testing.T, release *Release) {
		scaled := map[string]bool{}
		for _, autoscaler := range All[*autoscaling.HorizontalPodAutoscaler](release) {
			scaled[autoscaler.Spec.ScaleTargetRef.Name] = true
		}
		for _, deployment := range All[*apps.Deployment](release) {
			if said := deployment.Spec.Replicas != nil; said == scaled[deployment.Name] {
				t.Errorf("%s sets replicas: %t; it has an autoscaler: %t", deployment.Name, said, scaled[deployment.Name])
			}
		}
	})
}

func TestTheAutoscalerOfDispatchSelectsItsConsumerGroup(t *testing.T) {
	release := render(t, "--set", "dispatch.autoscaling.enabled=true,config.kafka.prefix=orders")
	autoscaler := get[*autoscaling.HorizontalPodAutoscaler](t, release, "HorizontalPodAutoscaler/throughline-dispatch")
	selector := autoscaler.Spec.Metrics[0].External.Metric.Selector
	if group := selector.MatchLabels["messaging_consumer_group_name"]; group != "orders-dispatch" {
		t.Errorf("it selects %q", group)
	}
}

func TestTheMigrationDependsOnlyOnItsOwnHooks(t *testing.T) {
	release := render(t)
	job := get[*batch.Job](t, release, "Job/throughline-migrate")
	pod := job.Spec.Template.Spec
	needs := []meta.Object{
		get[*core.ServiceAccount](t, release, "ServiceAccount/"+pod.ServiceAccountName),
		get[*core.ConfigMap](t, release, "ConfigMap/"+pod.Volumes[0].ConfigMap.Name),
		get[*networking.NetworkPolicy](t, release, "NetworkPolicy/throughline-migrate"),
	}
	for _, object := range append(needs, job) {
		annotations := object.GetAnnotations()
		weight := map[bool]string{true: "0", false: "-1"}[object == meta.Object(job)]
		if annotations[hook] != "pre-install,pre-upgrade" || annotations[hookWeight] != weight {
			t.Errorf("%s: %v", object.GetName(), annotations)
		}
	}
}

func TestEachComponentHasItsImageAndADigestOverridesTheTag(t *testing.T) {
	const digest = "sha256:0123456789012345678901234567890123456789012345678901234567890123"
	const values = "image.repository=example/all,image.tag=v2,image.digests.throughline-dispatch=" + digest
	wanted := map[string]string{
		"ingest":   "example/all/throughline-ingest:v2",
		"dispatch": "example/all/throughline-dispatch@" + digest,
		"migrate":  "example/all/throughline:v2",
		"purge":    "example/all/throughline:v2",
	}
	for _, pod := range render(t, "--set", values).Pods() {
		container := pod.Spec.Containers[0]
		if container.Image != wanted[container.Name] {
			t.Errorf("%s runs %s", pod.Owner, container.Image)
		}
		delete(wanted, container.Name)
	}
	if len(wanted) > 0 {
		t.Errorf("no pod runs %v", wanted)
	}
}

func TestMigrationsCanUseAnotherDatabaseServer(t *testing.T) {
	const pooler, itself = "postgres://throughline@pooler:6432/throughline", "postgres://throughline@primary:5432/throughline"
	rest := "database.host=pooler,database.port=6432"
	for values, migrates := range map[string]string{
		rest: pooler,
		rest + ",migrations.database.host=primary,migrations.database.port=5432": itself,
	} {
		release := render(t, "--set", values)
		for owner, url := range map[string]string{
			"throughline-ingest": pooler, "throughline-purge": pooler, "throughline-migrate": migrates,
		} {
			if found := variable(t, release, owner, "THROUGHLINE_DATABASE__URL"); found != url {
				t.Errorf("%s: %s connects to %s", values, owner, found)
			}
			network := get[*networking.NetworkPolicy](t, release, "NetworkPolicy/"+owner)
			may := slices.ContainsFunc(network.Spec.Egress, func(rule networking.NetworkPolicyEgressRule) bool {
				return slices.ContainsFunc(rule.Ports, func(port networking.NetworkPolicyPort) bool {
					return strings.Contains(url, fmt.Sprintf(":%d/", port.Port.IntVal))
				})
			})
			if !may {
				t.Errorf("%s: %s may not connect to %s", values, owner, url)
			}
		}
	}
}

// variable returns the value of an environment variable of a pod.
func variable(t *testing.T, release *Release, owner, name string) string {
	t.Helper()
	for _, pod := range release.Pods() {
		for _, variable := range pod.Spec.Containers[0].Env {
			if pod.Owner == owner && variable.Name == name {
				return variable.Value
			}
		}
	}
	t.Fatalf("%s has no variable %s", owner, name)
	return ""
}

func TestPurgesRunWithTheConfiguredParallelismAndAreNotRestarted(t *testing.T) {
	job := get[*batch.CronJob](t, render(t, "--set", "purge.parallelism=4"), "CronJob/throughline-purge").Spec.JobTemplate.Spec
	if job.Parallelism == nil || *job.Parallelism != 4 || job.Completions != nil {
		t.Errorf("parallelism %v, completions %v", job.Parallelism, job.Completions)
	}
}

func TestAPurgeEndsByItselfBeforeItsJobFails(t *testing.T) {
	for values, wanted := range map[string]time.Duration{
		"purge.parallelism=1":                              50 * time.Minute,
		"purge.for=90s,purge.activeDeadlineSeconds=91":     90 * time.Second,
		"purge.for=1h30m,purge.activeDeadlineSeconds=5401": 90 * time.Minute,
	} {
		job := get[*batch.CronJob](t, render(t, "--set", values), "CronJob/throughline-purge").Spec.JobTemplate.Spec
		command := job.Template.Spec.Containers[0].Command
		at := slices.Index(command, "--for")
		if at < 0 || at+1 == len(command) {
			t.Fatalf("%s: no time limit for %v", values, command)
		}
		ends, err := time.ParseDuration(command[at+1])
		if deadline := time.Duration(*job.ActiveDeadlineSeconds) * time.Second; err != nil || ends != wanted || ends >= deadline {
			t.Errorf("%s: it ends after %s, and fails after %s: %v", values, ends, deadline, err)
		}
	}
}

func TestTheNotesNameOnlyExistingObjects(t *testing.T) {
	files, err := ValuesFiles()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			release, said := render(t, "--values", file), notes(t, "--values", file)
			for _, name := range found(t, `deployment/(\S+)`, said) {
				get[*apps.Deployment](t, release, "Deployment/"+name[1])
			}
			for _, forward := range found(t, `port-forward service/(\S+) \d+:(\d+)`, said) {
				service := get[*core.Service](t, release, "Service/"+forward[1])
				if port := fmt.Sprint(service.Spec.Ports[0].Port); port != forward[2] {
					t.Errorf("the port is %s: %s", port, forward[0])
				}
			}
			// An image contains only its own program, and no shell.
			if strings.Contains(said, " exec ") {
				t.Errorf("the notes run a program in a pod: %s", said)
			}
			for _, path := range []string{"/v1/requests/<request id>/explain", pathOfItsRoute(t, release)} {
				found(t, "curl .*localhost:8099"+regexp.QuoteMeta(path)+" ", said)
			}
		})
	}
}

func TestTheNotesSendAKeyIfClientsAreConfigured(t *testing.T) {
	const none = "config.clients.default=null,config.insecure=true"
	for values, keys := range map[string]bool{"config.routes.one.path=/one": true, none: false} {
		for _, call := range found(t, `(?m)^ *curl .*$`, notes(t, "--set", values)) {
			if sends := strings.Contains(call[0], "authorization: Bearer"); sends != keys {
				t.Errorf("%s: the notes send a key: %t: %s", values, sends, call[0])
			}
		}
	}
}

func TestTheNotesPostOnlyToRoutesWithAPath(t *testing.T) {
	const adopted = "config.routes.adopted.topic=adopted,config.routes.adopted.destinations[0]=three"
	for _, call := range found(t, `curl -i localhost:8099(\S*)`, notes(t, "--set", adopted)) {
		if call[1] == "" {
			t.Errorf("the notes post to a route without a path: %s", call[0])
		}
	}
}

func TestTheNotesWarnIfExternalRequestsAreBlocked(t *testing.T) {
	const outside = "ingest.ingress.enabled=true,ingest.ingress.hosts[0].host=a,ingest.ingress.hosts[0].paths[0]=/one"
	for values, tells := range map[string]bool{
		outside:                                  true,
		"ingest.service.type=LoadBalancer":       true,
		"ingest.service.type=ClusterIP":          false,
		outside + ",networkPolicy.enabled=false": false,
		outside + ",networkPolicy.ingest.from[0].ipBlock.cidr=203.0.113.0/24": false,
	} {
		if told := strings.Contains(notes(t, "--set", values), "networkPolicy.ingest.from"); told != tells {
			t.Errorf("%s: the notes warn: %t", values, told)
		}
	}
}

func notes(t *testing.T, arguments ...string) string {
	t.Helper()
	text, err := Notes(arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// found returns all matches, and fails the test if there is none.
func found(t *testing.T, pattern, text string) [][]string {
	t.Helper()
	matches := regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1)
	if len(matches) == 0 {
		t.Errorf("no match for `%s` in %s", pattern, text)
	}
	return matches
}

// pathOfItsRoute returns the path of the only route of a configuration.
func pathOfItsRoute(t *testing.T, release *Release) string {
	t.Helper()
	ingest := get[*apps.Deployment](t, release, "Deployment/throughline-ingest")
	settings := configuration(t, release, Pod{Owner: ingest.Name, Spec: ingest.Spec.Template.Spec})
	for _, route := range settings["routes"].(map[string]any) {
		return route.(map[string]any)["path"].(string)
	}
	t.Fatal("not found")
	return ""
}

func TestInvalidValuesAreRejected(t *testing.T) {
	for values, reason := range map[string]string{
		"ingets.replicas=3":                                                "additional properties 'ingets' not allowed",
		"ingest.replica=3":                                                 "additional properties 'replica' not allowed",
		"ingest.replicas=0":                                                "minimum",
		"ingest.ingress.enabled=true":                                      "/ingest/ingress/hosts",
		"networkPolicy.ingest.from=null":                                   "/networkPolicy/ingest",
		"purge.schedule=nightly":                                           "/purge/schedule",
		"shutdown.marginSeconds=1":                                         "/shutdown/marginSeconds",
		"migrations.database.name=other":                                   "additional properties 'name' not allowed",
		"purge.parallelism=0":                                              "/purge/parallelism",
		"database.password=geheim":                                         "additional properties 'password' not allowed",
		"secrets[1].name=kafka":                                            "/secrets/1",
		"files.throughline\\.yaml=x":                                       "invalid propertyName 'throughline.yaml'",
		"config.routes.one=null":                                           "/config/routes",
		"config.shutdown_deadline=60s":                                     "/config/shutdown_deadline",
		"config.database.url=postgres://me:secret@db/me":                   "/config/database/url",
		"config.ingest.node_ids=0-1":                                       "up to 3 ingest replicas can run at the same time, but there are only 2 node ids",
		"config.kafka.signing_key=0123456789abcdef":                        "/config/kafka/signing_key",
		"config.http.address=0.0.0.0:80":                                   "/config/http/address",
		"config.http.health_address=0.0.0.0:80":                            "/config/http/health_address",
		"config.clients.shop.key=0123456789abcdef":                         "/config/clients/shop/key",
		"config.kafka.properties.sasl\\.password=geheim":                   "/config/kafka/properties/sasl.password",
		"config.destinations.three.oauth2.client_secret=open":              "/config/destinations/three/oauth2/client_secret",
		"config.destinations.three.oauth2.parameters.password=open":        "/config/destinations/three/oauth2/parameters/password",
		"dispatch.replicas=13":                                             "topics have only 12 partitions",
		"ingest.autoscaling.enabled=true,ingest.autoscaling.maxReplicas=1": "ingest.autoscaling.minReplicas is 2, but maxReplicas is 1",
		"dispatch.autoscaling.enabled=true,dispatch.autoscaling.minReplicas=13,dispatch.autoscaling.maxReplicas=12": "dispatch.autoscaling.minReplicas is 13, but maxReplicas is 12",
		"secrets[0].name=a.b,secrets[0].mount=true,secrets[1].name=a-b,secrets[1].mount=true":                       "secrets a.b and a-b would both have the volume name secret-a-b",
		"secrets[0].name=a,secrets[0].mount=true,secrets[1].name=a,secrets[1].mount=true":                           "secrets a and a would both have the volume name secret-a",
		"purge.for=fifty":                                  "/purge/for",
		"purge.for=null":                                   "missing property 'for'",
		"purge.for=1h30m":                                  "purge.activeDeadlineSeconds is 3600, but must exceed purge.for, which is 1h30m (5400 seconds)",
		"purge.activeDeadlineSeconds=3000":                 "purge.activeDeadlineSeconds is 3000, but must exceed purge.for, which is 50m (3000 seconds)",
		"networkPolicy.dns.ports=null":                     "/networkPolicy/dns",
		"config.kafka.bootstrap_servers=k:99999":           "k:99999: invalid port",
		"config.destinations.three.url=http://third:0":     "http://third:0: invalid port",
		"telemetry.endpoint=collector:4318":                "/telemetry/endpoint",
		"telemetry.variables.OTEL_RESOURCE_ATTRIBUTES=a=b": "invalid propertyName 'OTEL_RESOURCE_ATTRIBUTES'",
	} {
		_, err := Render("--set", values)
		if err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: expected `%s`: %v", values, reason, err)
		}
	}
}

func TestDispatchMayHaveAnyNumberOfReplicasIfItDoesNotCreateTheTopics(t *testing.T) {
	render(t, "--set", "dispatch.replicas=13,config.kafka.topics.create=false")
}

func TestUnusedValuesAreNotRejected(t *testing.T) {
	for _, values := range []string{
		"ingest.autoscaling.minReplicas=9,ingest.autoscaling.maxReplicas=1",
		"ingest.autoscaling.enabled=true,ingest.autoscaling.minReplicas=3,ingest.autoscaling.maxReplicas=3",
		"secrets[0].name=a.b,secrets[0].mount=true,secrets[1].name=a-b,secrets[1].env.KEY=key",
		"secrets[0].name=a,secrets[0].mount=true,secrets[1].name=a,secrets[1].env.KEY=key",
		"purge.enabled=false,purge.for=2h",
		"networkPolicy.enabled=false,config.kafka.bootstrap_servers=k:99999",
		"config.ingest.node_ids=10-12",
	} {
		render(t, "--set", values)
	}
}
