{{/* Names get a suffix: -ingest, -dispatch, -migrate or -purge. The name of a CronJob is limited to 52 characters. */}}
{{- define "throughline.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 44 | trimSuffix "-" -}}
{{- end -}}

{{- define "throughline.serviceAccountName" -}}
{{- default (ternary (include "throughline.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* Ingest and dispatch have their own images; the command throughline has a third. Arguments: root, component. */}}
{{- define "throughline.image" -}}
{{- $image := .root.Values.image -}}
{{- $name := get (dict "ingest" "throughline-ingest" "dispatch" "throughline-dispatch") .component | default "throughline" -}}
{{- $reference := printf ":%s" (default .root.Chart.AppVersion $image.tag) -}}
{{- with get $image.digests $name -}}{{- $reference = printf "@%s" . -}}{{- end -}}
{{- $image.repository -}}/{{- $name -}}{{- $reference -}}
{{- end -}}

{{/* The labels that select a component. They must never change, because a Deployment's selector is immutable.
     Arguments: root, component. */}}
{{- define "throughline.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Arguments: root, component. */}}
{{- define "throughline.labels" -}}
{{ include "throughline.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: throughline
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The files of the ConfigMap: throughline.yaml and `files`. */}}
{{- define "throughline.files" -}}
throughline.yaml: |
  {{- $ours := dict "shutdown_deadline" (printf "%ds" (int .Values.shutdown.deadlineSeconds)) }}
  {{- mustMergeOverwrite (deepCopy .Values.config) $ours | toYaml | nindent 2 }}
{{- range $name, $content := .Values.files }}
{{ $name }}: {{ $content | toYaml }}
{{- end }}
{{- end -}}

{{/* The complete specification of a pod with one container. Arguments: root, component, values, command, configMap, and
     optionally: container (additional fields), database (values like those of `database`), telemetry (a boolean),
     pod (additional fields). */}}
{{- define "throughline.pod" -}}
{{- $values := .root.Values -}}
{{- include "throughline.volumesAreDistinct" $values.secrets -}}
serviceAccountName: {{ default (include "throughline.serviceAccountName" .root) .serviceAccountName }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- toYaml $values.podSecurityContext | nindent 2 }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod }}
{{ . }}
{{- end }}
containers:
  - name: {{ .component }}
    image: {{ include "throughline.image" . | quote }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    command: {{- toYaml .command | nindent 6 }}
    env: {{- include "throughline.environment" . | nindent 6 }}
    {{- with .container }}
    {{- . | nindent 4 }}
    {{- end }}
    resources: {{- toYaml .values.resources | nindent 6 }}
    securityContext: {{- toYaml $values.securityContext | nindent 6 }}
    volumeMounts:
      - {name: config, mountPath: /etc/throughline, readOnly: true}
      {{- range $values.secrets }}
      {{- if .mount }}
      - {name: {{ include "throughline.volume" .name }}, mountPath: {{ printf "/run/secrets/%s" .name }}, readOnly: true}
      {{- end }}
      {{- end }}
volumes:
  - name: config
    configMap: {name: {{ .configMap }}}
  {{- range $values.secrets }}
  {{- if .mount }}
  - name: {{ include "throughline.volume" .name }}
    secret: {secretName: {{ .name }}, defaultMode: 0440}
  {{- end }}
  {{- end }}
{{- end -}}

{{/* The name of a Secret may contain dots, but the name of a volume may not. */}}
{{- define "throughline.volume" -}}
secret-{{ . | replace "." "-" }}
{{- end -}}

{{- define "throughline.volumesAreDistinct" -}}
{{- $taken := dict -}}
{{- range $secret := . -}}
{{- if .mount -}}
{{- $volume := include "throughline.volume" .name -}}
{{- with get $taken $volume -}}
{{- fail (printf "secrets %s and %s would both have the volume name %s: mount only one of them, or rename one Secret" . $secret.name $volume) -}}
{{- end -}}
{{- $_ := set $taken $volume .name -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Every program reads all of throughline.yaml, so every pod gets the Secrets that it refers to. Only the password of the
     database is not in that file, and dispatch does not get it. */}}
{{- define "throughline.environment" -}}
{{- $values := .root.Values -}}
- {name: THROUGHLINE_CONFIG, value: /etc/throughline/throughline.yaml}
{{- with .database }}
- {name: THROUGHLINE_DATABASE__URL, value: {{ include "throughline.databaseUrl" . | quote }}}
# The driver's own variable: a password in the URL would have to be percent-encoded.
- name: PGPASSWORD
  valueFrom:
    secretKeyRef: {name: {{ .passwordSecret.name }}, key: {{ .passwordSecret.key }}}
{{- end }}
{{- with $values.signingKey }}
- name: THROUGHLINE_KAFKA__SIGNING_KEY
  valueFrom:
    secretKeyRef: {name: {{ .name }}, key: {{ .key | quote }}}
{{- if .acceptedKey }}
- name: THROUGHLINE_KAFKA__ACCEPTED_KEY
  valueFrom:
    secretKeyRef: {name: {{ .name }}, key: {{ .acceptedKey | quote }}}
{{- end }}
{{- end }}
{{- range $secret := $values.secrets }}
{{- range $variable, $key := $secret.env }}
- name: {{ $variable }}
  valueFrom:
    secretKeyRef: {name: {{ $secret.name }}, key: {{ $key | quote }}}
{{- end }}
{{- end }}
{{- if and .telemetry $values.telemetry.endpoint }}
{{ include "throughline.telemetry" . }}
{{- end }}
{{- with $values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "throughline.databaseUrl" -}}
{{- $parameters := list -}}
{{- range $name, $value := .parameters -}}
{{- $parameters = append $parameters (printf "%s=%s" $name (toString $value | urlquery)) -}}
{{- end -}}
postgres://{{ .user }}@{{ .host }}:{{ int .port }}/{{ .name }}
{{- with $parameters }}?{{ join "&" . }}{{ end -}}
{{- end -}}

{{- define "throughline.telemetry" -}}
{{- $telemetry := .root.Values.telemetry -}}
{{- $attributes := list
      "k8s.namespace.name=$(K8S_NAMESPACE_NAME)"
      "k8s.node.name=$(K8S_NODE_NAME)"
      "k8s.pod.name=$(K8S_POD_NAME)"
      "k8s.pod.uid=$(K8S_POD_UID)"
      (printf "k8s.container.name=%s" .component)
      (printf "k8s.deployment.name=%s-%s" (include "throughline.fullname" .root) .component)
      (printf "service.instance.id=$(K8S_NAMESPACE_NAME).$(K8S_POD_NAME).%s" .component) -}}
{{- range $name, $value := $telemetry.resourceAttributes -}}
{{- $attributes = append $attributes (printf "%s=%s" $name (toString $value | urlquery | replace "+" "%20")) -}}
{{- end -}}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ $telemetry.endpoint | quote }}}
- {name: K8S_NAMESPACE_NAME, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: K8S_NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
- {name: K8S_POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: K8S_POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
- {name: OTEL_RESOURCE_ATTRIBUTES, value: {{ join "," $attributes | quote }}}
{{- range $name, $value := $telemetry.variables }}
- {name: {{ $name }}, value: {{ toString $value | quote }}}
{{- end }}
{{- end -}}

{{/* Additional fields of the pod of a service: grace period and topology spread. Arguments: root, component, values. */}}
{{- define "throughline.service.pod" -}}
{{- $shutdown := .root.Values.shutdown -}}
terminationGracePeriodSeconds: {{ add $shutdown.preStopSeconds $shutdown.deadlineSeconds $shutdown.marginSeconds }}
{{- with .values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{ toYaml . | nindent 4 | trim }}
    labelSelector:
      matchLabels: {{- include "throughline.selector" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end -}}

{{- define "throughline.service.probes" -}}
startupProbe: {{- toYaml .startupProbe | nindent 2 }}
livenessProbe: {{- toYaml .livenessProbe | nindent 2 }}
readinessProbe: {{- toYaml .readinessProbe | nindent 2 }}
{{- end -}}

{{/* Arguments: component, autoscaling. */}}
{{- define "throughline.autoscaling.isARange" -}}
{{- $least := int .autoscaling.minReplicas -}}
{{- $most := int .autoscaling.maxReplicas -}}
{{- if gt $least $most -}}
{{- fail (printf "%s.autoscaling.minReplicas is %d, but maxReplicas is %d: raise maxReplicas or lower minReplicas" .component $least $most) -}}
{{- end -}}
{{- end -}}

{{/* Converts a duration such as 50m or 1h30m to seconds. */}}
{{- define "throughline.seconds" -}}
{{- $units := dict "s" 1 "m" 60 "h" 3600 -}}
{{- $seconds := 0 -}}
{{- range regexFindAll "[0-9]+[smh]" . -1 -}}
{{- $seconds = add $seconds (mul (regexFind "[0-9]+" .) (get $units (regexFind "[smh]" .))) -}}
{{- end -}}
{{- $seconds -}}
{{- end -}}

{{/* A replica without a node id does not start. A rollout runs one additional replica. */}}
{{- define "throughline.ingest.enoughNodeIds" -}}
{{- $range := dig "ingest" "node_ids" "0-1023" .Values.config | toString | splitList "-" -}}
{{- $ids := add 1 (sub (last $range | int) (first $range | int)) | int -}}
{{- with .Values.ingest -}}
{{- $replicas := add 1 (ternary .autoscaling.maxReplicas .replicas .autoscaling.enabled) | int -}}
{{- if gt $replicas $ids -}}
{{- fail (printf "up to %d ingest replicas can run at the same time, but there are only %d node ids: the others would not start; widen config.ingest.node_ids" $replicas $ids) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A replica without a partition is idle. */}}
{{- define "throughline.dispatch.enoughPartitions" -}}
{{- $topics := dig "topics" dict .Values.config.kafka -}}
{{- with .Values.dispatch -}}
{{- $replicas := ternary .autoscaling.maxReplicas .replicas .autoscaling.enabled | int -}}
{{- $partitions := dig "partitions" 12 $topics | int -}}
{{- if and $topics.create (gt $replicas $partitions) -}}
{{- fail (printf "dispatch can have %d replicas, but topics have only %d partitions: the others would be idle; add partitions and raise config.kafka.topics.partitions, or use fewer replicas" $replicas $partitions) -}}
{{- end -}}
{{- end -}}
{{- end -}}
