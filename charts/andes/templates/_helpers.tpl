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
app.kubernetes.io/name: {{ include "andes.name" $root | toYaml }}
app.kubernetes.io/instance: {{ $root.Release.Name | toYaml }}
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
{{- include "andes.checkLabels" (list "commonLabels" . (list "part-of" "version" "managed-by")) }}
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
  {{- include "andes.checkLabels" (list (printf "%s.podLabels" (regexFind "^[a-z]+" $component)) $values.podLabels list) }}
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
serviceAccountName: {{ include "andes.serviceAccountName" . | toYaml }}
enableServiceLinks: false # a Service's variables would look like our settings
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "andes.podSecurity" $root | nindent 2 }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | toYaml }}
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
dns://{{ include "andes.engineService" . }}.{{ (first .).Release.Namespace }}.svc:30000
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
{{- $parts := ternary (list "leaders") list (not (empty (include "andes.grouped" (list $ $component)))) -}}
{{- if (index $.Values $component).cache.node.enabled -}}{{- $parts = append $parts "cache" -}}{{- end -}}
{{- range $part := $parts -}}
{{- $other := printf "%s-%s" $component $part -}}
{{- if has $other $found -}}
{{- fail (printf "models: the name %s is that of a part of %s (its %s): choose another" (trimPrefix "engine-" $other) (trimPrefix "engine-" $component) $part) -}}
{{- end -}}
{{- end -}}
{{- include "andes.checkEngine" (list $ $component) -}}
{{- end -}}
{{- include "andes.checkServed" (list $ $found) -}}
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

{{- /* A probe with fields of one's own, whose handler replaces the chart's: list "YAML of a probe" .probes.liveness. What the API server
would fill in is written: server-side apply takes away only what is. */ -}}
{{- define "andes.probe" -}}
{{- $own := last . -}}
{{- $probe := first . | fromYaml -}}
{{- range list "httpGet" "tcpSocket" "exec" "grpc" -}}
{{- if hasKey $own . -}}{{- $probe = omit $probe "httpGet" "tcpSocket" "exec" "grpc" -}}{{- end -}}
{{- end -}}
{{- $probe = mergeOverwrite $probe (deepCopy $own) -}}
{{- with $probe.httpGet -}}
{{- $_ := set . "scheme" (default "HTTP" .scheme) -}}
{{- end -}}
{{- toYaml $probe -}}
{{- end -}}

{{- define "andes.adminSecret" -}}
{{- default (include "andes.component" (list . "admin")) .Values.gateway.adminKey.existingSecret -}}
{{- end -}}

{{- /* Name of the claim for files and batches. */}}
{{- define "andes.batchClaim" -}}
{{ include "andes.component" (list . "gateway") }}-batches
{{- end }}

{{- /* Environment of the gateway, as a list: . */ -}}
{{- define "andes.gatewayEnv" -}}
- name: ANDES_GATEWAY_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: ANDES_GATEWAY_ADMIN_KEY_SHA256
  valueFrom: {secretKeyRef: {name: {{ include "andes.adminSecret" . | toYaml }}, key: sha256}}
{{- with .Values.gateway.tenants }}
{{- if .existingSecret }}
- name: ANDES_GATEWAY_TENANTS
  valueFrom: {secretKeyRef: {name: {{ .existingSecret | toYaml }}, key: {{ .key | toYaml }}}}
{{- end }}
{{- end }}
{{- with .Values.engine }}
{{- if .apiKeySecret }}
- name: ANDES_GATEWAY_UPSTREAM_API_KEY
  valueFrom: {secretKeyRef: {name: {{ .apiKeySecret | toYaml }}, key: {{ .apiKeySecretKey | toYaml }}}}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Environment of the operator, as a list: . */ -}}
{{- define "andes.operatorEnv" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- if .Values.gateway.enabled }}
- name: ANDES_ADMIN_KEY
  valueFrom: {secretKeyRef: {name: {{ include "andes.adminSecret" . | toYaml }}, key: key}}
{{- end }}
{{- if .Values.profiles }}
{{- include "andes.profilesVariable" . | nindent 0 }}
{{- end }}
{{- end -}}

{{- /* Name and namespace of the operator's Lease, as its flags say: . */ -}}
{{- define "andes.lease" -}}
{{- $flags := printf " %s " (join " " .Values.operator.args) -}}
{{- toJson (dict "name" (default "andes-operator" (include "andes.flag" (list $flags "lease")))
  "namespace" (default .Release.Namespace (include "andes.flag" (list $flags "lease-namespace")))) -}}
{{- end -}}

{{- /* Security context of a pod, on OpenShift without user and groups: . */ -}}
{{- define "andes.podSecurity" -}}
{{- $context := .Values.podSecurityContext -}}
{{- if .Values.openshift.enabled -}}
{{- $context = omit $context "runAsUser" "runAsGroup" "fsGroup" "fsGroupChangePolicy" -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}
