// Package chart tests the output of `helm template` for the Helm chart, and parses it as strictly as Kubernetes does.
// It requires helm, and the command throughline, whose path is in THROUGHLINE.
package chart

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/yaml"
)

const folder = "../throughline"

// Release is the objects of an installation of the chart, by kind and name.
type Release struct {
	objects map[string]meta.Object
}

// Pod is a pod template and the name of its owner.
type Pod struct {
	Owner string
	Meta  meta.ObjectMeta
	Spec  core.PodSpec
}

// Render renders the chart with arguments of `helm template`.
func Render(arguments ...string) (*Release, error) {
	text, err := helm("template", arguments)
	if err != nil {
		return nil, err
	}
	decoder, err := decoder()
	if err != nil {
		return nil, err
	}
	release := &Release{objects: map[string]meta.Object{}}
	for _, document := range separator.Split(text, -1) {
		if content, err := yaml.YAMLToJSON([]byte(document)); err != nil || string(content) == "null" {
			if err != nil {
				return nil, fmt.Errorf("%w in %s", err, document)
			}
			continue
		}
		object, kind, err := decoder.Decode([]byte(document), nil, nil)
		if err != nil {
			return nil, fmt.Errorf("%w in %s", err, document)
		}
		named := object.(meta.Object)
		key := kind.Kind + "/" + named.GetName()
		if release.objects[key] != nil {
			return nil, fmt.Errorf("duplicate object %s", key)
		}
		release.objects[key] = named
	}
	return release, nil
}

// Notes returns the notes that `helm install` prints, which `helm template` omits.
func Notes(arguments ...string) (string, error) {
	text, err := helm("install", append([]string{"--dry-run=client"}, arguments...))
	if err != nil {
		return "", err
	}
	_, notes, found := strings.Cut(text, "\nNOTES:\n")
	if !found {
		return "", errors.New("it says nothing")
	}
	return notes, nil
}

func helm(verb string, arguments []string) (string, error) {
	text, err := exec.Command("helm", append([]string{verb, "throughline", folder}, arguments...)...).Output()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		return "", errors.New(string(failed.Stderr))
	}
	return string(text), err
}

var separator = regexp.MustCompile(`(?m)^---$`)

// decoder decodes the kinds that the chart may use, and rejects unknown fields.
func decoder() (runtime.Decoder, error) {
	scheme := runtime.NewScheme()
	builder := runtime.NewSchemeBuilder(
		apps.AddToScheme, autoscaling.AddToScheme, batch.AddToScheme, core.AddToScheme,
		networking.AddToScheme, policy.AddToScheme,
	)
	if err := builder.AddToScheme(scheme); err != nil {
		return nil, err
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer(), nil
}

// ValuesFiles returns the values files of the chart's `ci` folder.
func ValuesFiles() ([]string, error) {
	files, err := filepath.Glob(folder + "/ci/*-values.yaml")
	if err == nil && len(files) == 0 {
		err = errors.New("there are none in " + folder + "/ci")
	}
	return files, err
}

// Get returns the object of a kind and name; T must be the type of the kind.
func Get[T meta.Object](release *Release, key string) (T, error) {
	object, is := release.objects[key].(T)
	if !is {
		return object, fmt.Errorf("the chart does not render %s", key)
	}
	return object, nil
}

// All returns the objects of a type.
func All[T meta.Object](release *Release) []T {
	var all []T
	for _, object := range release.objects {
		if wanted, is := object.(T); is {
			all = append(all, wanted)
		}
	}
	return all
}

// Pods returns the templates of all pods.
func (release *Release) Pods() []Pod {
	var pods []Pod
	add := func(owner meta.Object, template core.PodTemplateSpec) {
		pods = append(pods, Pod{Owner: owner.GetName(), Meta: template.ObjectMeta, Spec: template.Spec})
	}
	for _, deployment := range All[*apps.Deployment](release) {
		add(deployment, deployment.Spec.Template)
	}
	for _, job := range All[*batch.Job](release) {
		add(job, job.Spec.Template)
	}
	for _, job := range All[*batch.CronJob](release) {
		add(job, job.Spec.JobTemplate.Spec.Template)
	}
	return pods
}

// ConfigMap returns the data of the ConfigMap that a pod mounts.
func (release *Release) ConfigMap(pod Pod) (map[string]string, error) {
	for _, volume := range pod.Spec.Volumes {
		if volume.ConfigMap != nil {
			mounted, err := Get[*core.ConfigMap](release, "ConfigMap/"+volume.ConfigMap.Name)
			if err != nil {
				return nil, fmt.Errorf("%s mounts a missing ConfigMap: %w", pod.Owner, err)
			}
			return mounted.Data, nil
		}
	}
	return nil, errors.New(pod.Owner + " mounts no ConfigMap")
}
