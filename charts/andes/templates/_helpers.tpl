{{- define "andes.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "andes.fullname" -}}
{{- $name := include "andes.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* Name of a component's objects: list $ "gateway" */ -}}
{{- define "andes.component" -}}
{{- printf "%s-%s" (include "andes.fullname" (first .)) (last .) -}}
{{- end -}}

{{- /* What never changes and identifies pods: list $ "gateway" */ -}}
{{- define "andes.selector" -}}
{{- $root := first . -}}
app.kubernetes.io/name: {{ include "andes.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end -}}

{{- /* Labels of an object: list $ "gateway" */ -}}
{{- define "andes.labels" -}}
{{- $root := first . -}}
{{ include "andes.selector" . }}
app.kubernetes.io/part-of: andes
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* list $ .Values.gateway.image */ -}}
{{- define "andes.image" -}}
{{- $root := first . -}}
{{- $image := last . -}}
{{- with $root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest -}}
@{{ $image.digest }}
{{- else -}}
:{{ coalesce $image.tag $root.Values.image.tag $root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* list $ "gateway" */ -}}
{{- define "andes.serviceAccountName" -}}
{{- $account := (index (first .).Values (last .)).serviceAccount -}}
{{- default (ternary (include "andes.component" .) "default" $account.create) $account.name -}}
{{- end -}}

{{- /* Stops with one sentence where the cluster lacks an API: list $ "policy/v1" "gateway.pdb.enabled" */ -}}
{{- define "andes.need" -}}
{{- $root := first . -}}
{{- if not ($root.Capabilities.APIVersions.Has (index . 1)) -}}
{{- fail (printf "%s: this cluster has no %s; switch it off, or install what serves that API (helm template: --api-versions %s)" (index . 2) (index . 1) (index . 1)) -}}
{{- end -}}
{{- end -}}

{{- /* Metadata of a pod template: list $ "gateway" port */ -}}
{{- define "andes.podMetadata" -}}
{{- $root := first . -}}
{{- $component := index . 1 -}}
{{- $values := index $root.Values $component -}}
labels: # without the chart's version, which would restart every engine when it changes
  {{- include "andes.selector" (list $root $component) | nindent 2 }}
  {{- with mustMergeOverwrite dict $root.Values.commonLabels $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := dict "kubectl.kubernetes.io/default-container" (ternary "engine" $component (hasPrefix "engine-" $component)) -}}
{{- if $root.Values.monitoring.scrapeAnnotations -}}
{{- $scrape := dict "prometheus.io/scrape" "true" "prometheus.io/path" "/metrics" "prometheus.io/port" (toString (index . 2)) -}}
{{- $annotations = merge $annotations $scrape -}}
{{- end }}
annotations:
  {{- toYaml (mergeOverwrite $annotations $values.podAnnotations) | nindent 2 }}
{{- end -}}

{{- /* What all pods share: list $ "gateway" */ -}}
{{- define "andes.podSpec" -}}
{{- $root := first . -}}
{{- $values := index $root.Values (last .) -}}
serviceAccountName: {{ include "andes.serviceAccountName" . }}
enableServiceLinks: false # a Service's variables would look like our settings
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml $root.Values.podSecurityContext | nindent 2 }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* As given, or over nodes and zones where there is room: list $ "gateway" */ -}}
{{- define "andes.spread" -}}
{{- $selector := include "andes.selector" . | fromYaml -}}
topologySpreadConstraints:
{{- with (index (first .).Values (last .)).topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
{{- else }}
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- toYaml $selector | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* Profiles of one's own, for those who simulate: . */ -}}
{{- define "andes.profilesVariable" -}}
- {name: ANDES_PROFILES, value: /etc/andes-profiles}
{{- end -}}

{{- define "andes.profilesMount" -}}
- {name: profiles, mountPath: /etc/andes-profiles, readOnly: true}
{{- end -}}

{{- define "andes.profilesVolume" -}}
- name: profiles
  configMap: {name: {{ include "andes.component" (list . "profiles") }}}
{{- end -}}

{{- /* Address of one model's engines: list $ "engine-coder" */ -}}
{{- define "andes.engineUrl" -}}
dns://{{ include "andes.component" . }}.{{ (first .).Release.Namespace }}.svc:30000
{{- end -}}

{{- /* JSON list of the engines' components: "engine", or "engine-NAME" of each model, whose values are then there by that name: . */ -}}
{{- define "andes.engines" -}}
{{- $found := list -}}
{{- if .Values.engine.enabled -}}
{{- range .Values.models -}}
{{- $component := printf "engine-%s" .name -}}
{{- if has $component $found -}}
{{- fail (printf "models: the name %s is there twice" .name) -}}
{{- end -}}
{{- $_ := set $.Values $component (mergeOverwrite (deepCopy $.Values.engine) (deepCopy (default dict .engine))) -}}
{{- if (index $.Values $component).enabled -}}
{{- $found = append $found $component -}}
{{- end -}}
{{- else -}}
{{- $found = list "engine" -}}
{{- end -}}
{{- end -}}
{{- range $component := $found -}}
{{- include "andes.checkGpus" (list $ $component) -}}
{{- include "andes.checkKey" (list $ $component) -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- /* JSON list of all components that are installed: . */ -}}
{{- define "andes.components" -}}
{{- $found := include "andes.engines" . | fromJsonArray -}}
{{- range $component := list "operator" "gateway" -}}
{{- if (index $.Values $component).enabled -}}{{- $found = prepend $found $component -}}{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- /* Stops where an engine's flags ask for other GPUs than it gets, which can only crash; what a --config file asks for is not known: list $ "engine" */ -}}
{{- define "andes.checkGpus" -}}
{{- $name := last . -}}
{{- $engine := index (first .).Values $name -}}
{{- if eq $engine.kind "sglang" -}}
{{- $text := printf " %s " (join " " $engine.args) -}}
{{- $asked := dict "tp" 1 "pp" 1 "dp" 1 "nnodes" 1 -}}
{{- $forms := dict "tp" "tp|tp-size|tensor-parallel-size" "pp" "pp-size|pipeline-parallel-size" "dp" "dp|dp-size|data-parallel-size" "nnodes" "nnodes" -}}
{{- range $flag, $names := $forms -}}
{{- $match := regexFind (printf " --(%s)[= ]+[0-9]+ " $names) $text -}}
{{- if $match -}}
{{- $_ := set $asked $flag (regexFind "[0-9]+ $" $match | trim | int) -}}
{{- end -}}
{{- end -}}
{{- if contains " --enable-dp-attention " $text -}}{{- $_ := set $asked "dp" 1 -}}{{- end -}}
{{- $needs := div (mul $asked.tp $asked.pp $asked.dp) $asked.nnodes | int -}}
{{- if and (ne $needs (int $engine.gpu.count)) (not (contains " --config " $text)) -}}
{{- $where := ternary "engine" (printf "models: %s: engine" (trimPrefix "engine-" $name)) (eq $name "engine") -}}
{{- fail (printf "%s.gpu.count is %d, but its args use %d (--tp, --pp-size, --dp-size): make them agree" $where (int $engine.gpu.count) $needs) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Stops where an engine asks for a key that the gateway does not send: list $ "engine-coder" */ -}}
{{- define "andes.checkKey" -}}
{{- $values := (first .).Values -}}
{{- $own := index $values (last .) -}}
{{- $differs := or (ne $own.apiKeySecret $values.engine.apiKeySecret) (ne $own.apiKeySecretKey $values.engine.apiKeySecretKey) -}}
{{- if and $values.gateway.enabled (eq $own.kind "sglang") $own.apiKeySecret $differs -}}
{{- fail (printf "models: %s: engine.apiKeySecret is %s, key %s, but the gateway sends one key to all engines: name it in engine.apiKeySecret" (trimPrefix "engine-" (last .)) $own.apiKeySecret $own.apiKeySecretKey) -}}
{{- end -}}
{{- end -}}

{{- /* Environment without what extraEnv names, then extraEnv: list "YAML of a list" .extraEnv */ -}}
{{- define "andes.env" -}}
{{- $names := list -}}
{{- range last . -}}{{- $names = append $names .name -}}{{- end -}}
{{- $found := list -}}
{{- range first . | fromYamlArray -}}
{{- if not (has .name $names) -}}{{- $found = append $found . -}}{{- end -}}
{{- end -}}
{{- with concat $found (last .) -}}
env:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- /* A probe with fields of one's own, whose handler replaces the chart's: list "YAML of a probe" .probes.liveness */ -}}
{{- define "andes.probe" -}}
{{- $own := last . -}}
{{- $probe := first . | fromYaml -}}
{{- range list "httpGet" "tcpSocket" "exec" "grpc" -}}
{{- if hasKey $own . -}}{{- $probe = omit $probe "httpGet" "tcpSocket" "exec" "grpc" -}}{{- end -}}
{{- end -}}
{{- toYaml (mergeOverwrite $probe (deepCopy $own)) -}}
{{- end -}}

{{- define "andes.adminSecret" -}}
{{- default (include "andes.component" (list . "admin")) .Values.gateway.adminKey.existingSecret -}}
{{- end -}}

{{- /* The live number of engines, where an earlier revision has written it and this one leaves it out: list $ "engine" */ -}}
{{- define "andes.keptReplicas" -}}
{{- $live := lookup "apps/v1" "Deployment" (first .).Release.Namespace (include "andes.component" .) -}}
{{- $written := and $live (hasKey (default dict $live.metadata.annotations) "andes.dev/replicas") -}}
{{- toJson (ternary (dict "replicas" (dig "spec" "replicas" 1 $live | int)) dict (not (empty $written))) -}}
{{- end -}}

{{- /* Name of the claim for files and batches. */}}
{{- define "andes.batchClaim" -}}
{{ include "andes.component" (list . "gateway") }}-batches
{{- end }}

{{- /* Environment of an engine, as a list: list $ its values */ -}}
{{- define "andes.engineEnv" -}}
{{- $root := first . -}}
{{- with last . -}}
{{- $sim := eq .kind "sim" -}}
{{- if and $sim $root.Values.profiles }}
{{- include "andes.profilesVariable" $root | nindent 0 }}
{{- end }}
{{- if not $sim }}
- {name: HOME, value: /cache}
- {name: HF_HOME, value: /cache/huggingface}
- {name: XDG_CACHE_HOME, value: /cache}
- {name: TORCHINDUCTOR_CACHE_DIR, value: /cache/torchinductor}
- {name: TRITON_CACHE_DIR, value: /cache/triton}
- {name: FLASHINFER_WORKSPACE_BASE, value: /cache}
{{- if .model.huggingFaceSecret }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .model.huggingFaceSecret }}, key: {{ .model.huggingFaceSecretKey }}}}
{{- end }}
{{- if .apiKeySecret }}
- name: ANDES_ENGINE_API_KEY
  valueFrom: {secretKeyRef: {name: {{ .apiKeySecret }}, key: {{ .apiKeySecretKey }}}}
{{- end }}
{{- if $root.Values.otel.endpoint }}
- {name: OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, value: http/protobuf}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{- /* Environment of the gateway, as a list: . */ -}}
{{- define "andes.gatewayEnv" -}}
- name: ANDES_GATEWAY_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: ANDES_GATEWAY_ADMIN_KEY_SHA256
  valueFrom: {secretKeyRef: {name: {{ include "andes.adminSecret" . }}, key: sha256}}
{{- with .Values.gateway.tenants }}
{{- if .existingSecret }}
- name: ANDES_GATEWAY_TENANTS
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}}
{{- end }}
{{- end }}
{{- with .Values.engine }}
{{- if .apiKeySecret }}
- name: ANDES_GATEWAY_UPSTREAM_API_KEY
  valueFrom: {secretKeyRef: {name: {{ .apiKeySecret }}, key: {{ .apiKeySecretKey }}}}
{{- end }}
{{- end }}
{{- end -}}
