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
{{- $annotations := dict "kubectl.kubernetes.io/default-container" $component -}}
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

{{- define "andes.engineUrl" -}}
dns://{{ include "andes.component" (list . "engine") }}.{{ .Release.Namespace }}.svc:30000
{{- end -}}

{{- define "andes.adminSecret" -}}
{{- default (include "andes.component" (list . "admin")) .Values.gateway.adminKey.existingSecret -}}
{{- end -}}

{{- /* The live number of engines, where an earlier revision has written it and this one leaves it out: . */ -}}
{{- define "andes.keptReplicas" -}}
{{- $live := lookup "apps/v1" "Deployment" .Release.Namespace (include "andes.component" (list . "engine")) -}}
{{- $written := and $live (hasKey (default dict $live.metadata.annotations) "andes.dev/replicas") -}}
{{- toJson (ternary (dict "replicas" (dig "spec" "replicas" 1 $live | int)) dict (not (empty $written))) -}}
{{- end -}}

{{- /* Name of the claim for files and batches. */}}
{{- define "andes.batchClaim" -}}
{{ include "andes.component" (list . "gateway") }}-batches
{{- end }}
